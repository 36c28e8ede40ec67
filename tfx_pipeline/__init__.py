"""What runs when: the pipeline graph, our TFX components, the local runner, the command line.

What the data is stands in `data/`, what is learned in `modules/`, what answers in `serving/`.
Start reading at `pipeline.py` (the graph) or `__main__.py` (the commands).
"""
