"""What a run shows of itself: the HTML report, and the table the command line ends with.

- `summary.py`: a task's metrics beside the oracle's and the last blessed model's.
- `history.py`: the training curves a Trainer wrote.
- `plots.py`: every figure, as inline SVG.
- `page.py`, `report.html.jinja`, `style.css`: the page. Nothing in it is fetched from anywhere.
- `comparison.py`, `comparison.html.jinja`: the page of several models side by side.
- `console.py`: the table, and what was read.
"""
