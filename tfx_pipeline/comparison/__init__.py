"""Models side by side, on the instances of one finished run: `python -m tfx_pipeline compare`.

- `variants.py`: which models, as overrides of the run's spec.
- `finished_run.py`: what is read of the run.
- `training.py`: one model's training, through the Trainers' own entry points.
- `predictions.py`: its predictions of the evaluation targets, kept as Parquet.
- `cost.py`: what it took.
- `trials.py`: all of them, each once; a restart goes on.
- `side_by_side.py`: several at a time, each in a process.
- `tables.py`, `page.py`: what came of it: means over seeds, significance, cost.
- `provenance.py`: the code, the machine and the date.
"""
