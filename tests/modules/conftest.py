"""A small spec with every kind of channel and task, and random transformed instances of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from data.architectures import TWO_DOMAINS
from data.spec import Domain, Spec, parse_spec
from modules.features import DOMAIN
from modules.models.architectures import ARCHITECTURES

ROWS = {"item": 40, "kind": 9, "tags": 12, "city": 7}
NUM_RESERVED = 3


_LIKE_ANOTHER = {(a, t) for a in (*TWO_DOMAINS, "nfm", "dcn") for t in ("causal", "expanded")}
_LIKE_ANOTHER -= {("darec", "causal")}
"""What differs from others in nothing that these tests ask: the architectures of two domains but
for one, and `nfm` and `dcn`, deepfm's heads with other readouts. `make test-all` asks them all."""
CASES = [
    pytest.param(
        case, id="-".join(case), marks=[pytest.mark.exhaustive] if case in _LIKE_ANOTHER else []
    )
    for case in itertools.product(ARCHITECTURES, ["causal", "expanded"])
]
"""(architecture, `sequence.targets`)."""


def make_spec(**overrides) -> Spec:
    raw = {
        "name": "tiny",
        "source": {"format": "tabular", "path": "*.parquet"},
        "sequence": {"max_length": 8, "window": 24, "targets": "causal"},
        "channels": [
            {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8,
             "mask_prediction": True},
            {"name": "kind", "scope": "sequence", "kind": "category", "dim": 4,
             "mask_prediction": True},
            {"name": "tags", "scope": "sequence", "kind": "category", "dim": 4,
             "multi_valued": True},
            {"name": "amount", "scope": "sequence", "kind": "dense", "mask_prediction": True},
            {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
            {"name": "tags", "scope": "candidate", "kind": "category", "table": "tags",
             "multi_valued": True},
            {"name": "price", "scope": "candidate", "kind": "dense"},
            {"name": "city", "scope": "context", "kind": "category", "dim": 4},
            {"name": "age", "scope": "context", "kind": "dense"},
        ],
        "tasks": [
            {"name": "click", "label": "clicked"},
            {"name": "grade", "label": "grade", "type": "multiclass", "classes": ["a", "b", "c"]},
            {"name": "adult", "per": "user", "label": "age"},
            {"name": "spend", "per": "user", "label": "spend", "type": "regression"},
        ],
        "model": {"hidden_dim": 16, "num_blocks": 2, "num_heads": 2, "num_experts": 3,
                  "ffn_dim": 16, "tower_dims": [8]},
    }  # fmt: skip
    return parse_spec(raw | overrides)


def with_architecture(spec: Spec, word: str) -> Spec:
    """The spec with another architecture, and with a domain where that needs one."""
    changes = {"model": spec.model.model_copy(update={"architecture": word})}
    if word in TWO_DOMAINS:
        changes["domain"] = Domain(channel="item", values=("1",))
    return spec.model_copy(update=changes)


def random_instances(spec: Spec, num_events: list[int], num_targets: list[int], seed: int = 0):
    """Transformed features as the parser gives them: ragged, multi-valued ones flat with counts."""
    rng = np.random.default_rng(seed)
    lengths = {"sequence": num_events, "candidate": num_targets, "context": [1] * len(num_events)}
    features = {}

    def ragged(values, row_lengths):
        return tf.RaggedTensor.from_row_lengths(values, np.asarray(row_lengths, np.int64))

    for channel in spec.channels:
        per_row = np.asarray(lengths[channel.scope])
        if channel.kind == "dense":
            values = rng.normal(size=per_row.sum()).astype(np.float32)
            values[rng.random(len(values)) < 0.2] = np.nan
            features[channel.feature] = ragged(values, per_row)
            continue
        low, high = NUM_RESERVED - 1, ROWS[channel.table_name]
        if channel.multi_valued:
            counts = rng.integers(0, 4, per_row.sum())
            features[channel.count_feature] = ragged(counts, per_row)
            owner = np.repeat(np.arange(len(per_row)), per_row)
            per_row = np.bincount(owner, weights=counts, minlength=len(per_row)).astype(np.int64)
        values = rng.integers(low, high, per_row.sum())
        features[channel.feature] = ragged(values, per_row)
    positions = [rng.integers(0, n + 1, k) for n, k in zip(num_events, num_targets, strict=True)]
    features["target_position"] = ragged(np.concatenate(positions).astype(np.int64), num_targets)
    splits = rng.integers(0, 2, sum(num_targets))
    features["target_split"] = ragged(splits, num_targets)
    train_length = np.array([rng.integers(0, n + 1) for n in num_events])
    features["train_length"] = ragged(train_length, [1] * len(num_events))
    if spec.domain is not None:
        features[DOMAIN] = ragged(rng.integers(0, 2, sum(num_targets)), num_targets)
    for task in spec.tasks:
        labels = rng.integers(0, 2, sum(num_targets)).astype(np.float32)
        labels[rng.random(len(labels)) < 0.3] = np.nan
        features[task.label_feature] = ragged(labels, num_targets)
    return features


@pytest.fixture(params=["causal", "expanded"])
def spec(request) -> Spec:
    sequence = {"max_length": 8, "window": 24, "targets": request.param}
    return make_spec(sequence=sequence)
