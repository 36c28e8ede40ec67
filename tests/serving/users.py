"""A user of the model of `saved_models.py`, and what its scores are made with."""

import numpy as np

USER = {"user_id": "u1", "sequence_item": [100, 200], "candidate_price": [0.5, -1.0, 2.0]}


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))
