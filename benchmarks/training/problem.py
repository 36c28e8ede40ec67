"""What the training benchmarks train: the real SuperMoE on synthetic batches over large id tables.

Ids are Zipf-distributed by rank, as behaviour is, and the rank is scattered over the table by an
odd factor, as hashing would. Labels depend on the candidate's id, so that tables have something to
learn. A batch is a pure function of its number: every placement trains on the same ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from data.spec import Spec, parse_spec
from modules.embeddings.table import NUM_RESERVED, ids_key, rows_key
from modules.features import Batch
from modules.models.tables import table_dim
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.training.input.localize import large_tables, localize
from modules.training.step import Step

_ID_TABLES = ("item", "shop", "author", "query")
_CATEGORIES = 40
_TARGETS = 4
_EXPONENT = 1.1
"""Of Zipf's law; the ids of real histories have about 1."""
_SCATTER = 2_654_435_761  # a prime: ranks -> row numbers one to one


@dataclasses.dataclass(frozen=True)
class Problem:
    """Args:
    rows: of each id table.
    ids: different ones that the batches are drawn from.
    tables: id tables, 1 to 4.
    batch_size: instances of `window` events and 4 targets.
    """

    rows: int = 1_000_000
    ids: int = 1_000_000
    tables: int = 4
    batch_size: int = 128
    window: int = 64
    hidden_dim: int = 64
    num_blocks: int = 2

    @property
    def id_tables(self) -> tuple[str, ...]:
        return _ID_TABLES[: self.tables]

    @property
    def spec(self) -> Spec:
        ids = {"kind": "id", "dim": 16, "rows": self.rows}
        return parse_spec(
            {
                "name": "synthetic",
                "source": {"format": "tabular", "path": "*.parquet"},
                "sequence": {
                    "max_length": self.window // 2,
                    "window": self.window,
                    "targets": "causal",
                },
                "channels": [
                    *({"name": table, "scope": "sequence", **ids} for table in self.id_tables),
                    {"name": "category", "scope": "sequence", "kind": "category", "dim": 16},
                    {"name": "price", "scope": "sequence", "kind": "dense"},
                    *(
                        {"name": table, "scope": "candidate", "kind": "id", "table": table}
                        for table in self.id_tables
                    ),
                    {"name": "price", "scope": "candidate", "kind": "dense"},
                    {"name": "age", "scope": "context", "kind": "dense"},
                ],
                "tasks": [
                    {"name": "click", "label": "click"},
                    {"name": "buy", "label": "buy"},
                ],
                "model": {
                    "hidden_dim": self.hidden_dim,
                    "num_blocks": self.num_blocks,
                    "num_heads": 4,
                    "num_experts": 4,
                    "num_attention_experts": 2,
                    "dropout": 0.0,
                },
                "training": {
                    "pretrain": {"epochs": 0},
                    "finetune": {"epochs": 1, "batch_size": self.batch_size},
                },
            }
        )

    @property
    def table_rows(self) -> dict[str, int]:
        return dict.fromkeys(self.id_tables, self.rows) | {"category": _CATEGORIES}

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Large tables -> the features that read them."""
        return large_tables(self.spec, self.table_rows)

    def batches(self, epoch: Any, start: Any, stop: Any) -> tf.data.Dataset:
        """Batches [start, stop), of as many events in every instance. See `placement.Batches`."""
        epoch = tf.cast(epoch, tf.int64)
        numbers = tf.data.Dataset.range(start, stop)
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False  # as `epoch_batches`
        made = numbers.map(lambda number: self._batch(tf.stack([epoch, number])))
        return made.with_options(options)

    def small_batch(self) -> Batch:
        """What variables are built with."""
        batch = self._batch(tf.constant([0, 0], tf.int64))
        batch = localize({name: value[:2] for name, value in batch.items()}, self.features)
        spec = self.spec
        return batch | {
            rows_key(name): tf.zeros([tf.size(batch[ids_key(name)]), table_dim(spec, name)])
            for name in self.features
        }

    def model(self) -> UserModel:
        model = UserModel(self.spec, self.table_rows)
        model(self.small_batch())
        return model

    def step(self, model: UserModel, num_steps: int) -> Step:
        phase = self.spec.training.finetune
        return Step(model, lambda batch, _: multi_task_loss(model, batch), phase, num_steps)

    def _batch(self, seed: tf.Tensor) -> Batch:
        shapes = {
            "sequence": [self.batch_size, self.window],
            "candidate": [self.batch_size, _TARGETS],
        }
        batch: Batch = {
            "sequence_mask": tf.ones(shapes["sequence"], tf.bool),
            "target_mask": tf.ones(shapes["candidate"], tf.bool),
            "target_position": tf.random.stateless_uniform(
                shapes["candidate"], seed, 1, self.window + 1, tf.int64
            ),
            "context_age": tf.random.stateless_normal([self.batch_size], seed),
        }
        for scope, shape in shapes.items():
            for number, table in enumerate(self.id_tables):
                batch[f"{scope}_{table}"] = self._ids(shape, seed + [number, 0])
            batch[f"{scope}_price"] = tf.random.stateless_normal(shape, seed)
        batch["sequence_category"] = tf.random.stateless_uniform(
            shapes["sequence"], seed, NUM_RESERVED, _CATEGORIES, tf.int64
        )
        batch["label_click"] = tf.cast(batch["candidate_item"] % 2, tf.float32)
        batch["label_buy"] = tf.cast(batch["candidate_item"] % 3 == 0, tf.float32)
        return batch

    def _ids(self, shape: list[int], seed: tf.Tensor) -> tf.Tensor:
        """int64, by the inverse of Zipf's cumulative distribution (of a continuous rank)."""
        uniform = tf.random.stateless_uniform(shape, seed, dtype=tf.float64)
        power = 1.0 - _EXPONENT
        rank = tf.pow(1.0 + uniform * (float(self.ids) ** power - 1.0), 1.0 / power) - 1.0
        return NUM_RESERVED + tf.cast(rank, tf.int64) * _SCATTER % (self.rows - NUM_RESERVED)
