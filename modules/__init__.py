"""What is learned: preprocessing, features, layers, models, objectives and their training.

Start with `models/` (`architectures.py` lists them, `user_model.py` puts one together), then
follow it down:

- `embeddings/`: the tables and the optimizer whose cost doesn't grow with them.
- `layers/`: one layer of the paper a file: feature projection (eq. 4), MoE attention
  (eq. 5), routing and MoE feed-forward (eq. 6), block (eq. 7), pooling and tower (eq. 8).
- `objectives/`: of pre-training (masked channels, eq. 1-2, and others), task losses (eq. 3, 9).
- `preprocessing.py`, `features.py`: from instances to a batch of dense tensors.
- `training/`: what a training run does.

Imports `data`; never `tfx_pipeline` or `serving`. Names of tensors end in their axes:
B batch, L sequence length, K targets, V values of a multi-valued channel, D hidden width,
E experts, F feed-forward width, C expert capacity, T tokens (B·L flattened), M masked.
"""
