"""How good a model is: AUC, GAUC (KEEP eq. 7) and their kin, and when a model is good enough.

- `auc.py`, `gauc.py`, `recall_at_precision.py`: the definitions, in NumPy.
- `resampled.py`, `significance.py`: metrics over resampled users; whether two models differ.
- `ranking.py`: HR@k, MRR@k and NDCG@k of one true item among candidates.
- `score_histogram.py`: AUC and curves from mergeable counts, for data of any size.
- `target_rows.py`: what a metric reads: the targets of complete users.
- `tfma_metrics.py`: the same as TFMA metrics.
- `eval_config.py`: the spec as a `tfma.EvalConfig`: metrics, slices, thresholds.
- `results.py`: what an evaluation found, read back.
"""
