"""A month of ids that arrive and vanish: a dynamic table against hashing in the same memory.

    python -m benchmarks.quality.dynamic_table [--seeds=3,4,5] [--output=dynamic_table.md]

Every day brings new ids with heavy-tailed popularity that fades within days. A label depends on
the id's quality, on how its taste fits the user's, and on other features; then it is drawn. A
small model with a table of one of three kinds is first tested on each day, then trained on it,
once over, in order. All tables take the same bytes: rows, optimizer state, and for the dynamic
table also its map, last steps, flags and sketch.

AUC is over all days from the fifth on; *fresh* examples are of ids first seen at most three days
before (the day's new ones included, which no table can know yet).

The dynamic table's sizes were chosen on seed 0, of about 35 settings; the default seeds are others.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import dataclasses  # noqa: E402
import io  # noqa: E402
import pathlib  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402
from absl import app, flags  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.channels import Dynamic  # noqa: E402
from modules.embeddings.compressed import MultiHashTable  # noqa: E402
from modules.embeddings.dynamic import DynamicTable  # noqa: E402
from modules.embeddings.hashing import bucket  # noqa: E402
from modules.embeddings.rowwise_adagrad import RowwiseAdagrad  # noqa: E402
from modules.embeddings.table import NUM_RESERVED, EmbeddingTable  # noqa: E402
from modules.metrics.auc import auc  # noqa: E402

_SEEDS = flags.DEFINE_list("seeds", ["3", "4", "5"], "Seeds of the month and of the models.")
_TABLE_LEARNING_RATE = flags.DEFINE_float("table_learning_rate", 1.6, "Of every contender.")
_OUTPUT = flags.DEFINE_string("output", None, "File that the tables are also written to.")

DAYS, WARM_UP_DAYS, EXAMPLES_A_DAY, BATCH = 30, 4, 20_000, 256
NEW_IDS_A_DAY, MEAN_LIFE_DAYS = 2_000, 5.0
TASTES, FEATURES, DIM = 4, 8, 16
FRESH_DAYS = 3
STEPS_A_DAY = EXAMPLES_A_DAY // BATCH
SIZES = Dynamic(capacity=2048, tail_rows=3500, admit_after=2, evict_after=STEPS_A_DAY * 3 // 2)
EVICT_EVERY = STEPS_A_DAY // 8
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Day:
    """Examples in order: keys int64 [n], features float32 [n, FEATURES] (the first TASTES are the
    user's), labels float32 [n], age in days since the id was first seen int64 [n]."""

    keys: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    age: np.ndarray


def month(seed: int) -> Iterator[Day]:
    """DAYS days of EXAMPLES_A_DAY; ids were also born in the 30 days before."""
    rng = np.random.default_rng(seed)
    total = NEW_IDS_A_DAY * 2 * DAYS
    born = np.repeat(np.arange(-DAYS, DAYS), NEW_IDS_A_DAY)
    keys = rng.choice(2**62, total).astype(np.int64) + NUM_RESERVED
    popularity = rng.lognormal(0.0, 1.8, total)
    life = rng.exponential(MEAN_LIFE_DAYS, total) + 0.5
    quality, taste = rng.normal(0, 1.0, total), rng.normal(0, 0.8, (total, TASTES))
    weights = rng.normal(0, 0.3, FEATURES)
    first_seen = np.full(total, -1)
    for day in range(DAYS):
        alive = born <= day
        share = np.where(alive, popularity * np.exp(-(day - born) / life), 0.0)
        ids = rng.choice(total, EXAMPLES_A_DAY, p=share / share.sum())
        features = rng.normal(0, 1, (EXAMPLES_A_DAY, FEATURES)).astype(np.float32)
        fit = (taste[ids] * features[:, :TASTES]).sum(1)
        logit = quality[ids] + fit + features @ weights - 0.5
        labels = rng.random(EXAMPLES_A_DAY) < 1 / (1 + np.exp(-logit))
        first_seen[ids] = np.where(first_seen[ids] < 0, day, first_seen[ids])
        yield Day(keys[ids], features, labels.astype(np.float32), day - first_seen[ids])


class HashedRows:
    """A table of fixed size, trained by the tables' Keras optimizer."""

    def __init__(self, table: keras.layers.Layer, ids: Callable[[tf.Tensor], tf.Tensor]):
        self.table, self._ids = table, ids
        self._optimizer = RowwiseAdagrad(_TABLE_LEARNING_RATE.value)
        self._optimizer.build(table.trainable_weights)

    @property
    def num_bytes(self) -> int:
        """Of rows and optimizer state."""
        rows = self.table.trainable_weights[0].shape[0]
        return rows * (DIM + 1) * 4

    def lookup(self, keys: tf.Tensor) -> tf.Tensor:
        return self.table(self._ids(keys))

    def train(
        self,
        keys: tf.Tensor,
        step: tf.Tensor,
        loss_of: Callable[[tf.Tensor], tf.Tensor],
        weights: list[tf.Variable],
    ) -> list[tf.Tensor]:
        """Trains the rows; returns the gradients of `weights`."""
        with tf.GradientTape() as tape:
            loss = loss_of(self.lookup(keys))
        own = self.table.trainable_weights
        own_gradients, gradients = tape.gradient(loss, [own, weights])
        self._optimizer.apply_gradients(zip(own_gradients, own, strict=True))
        return gradients


class DynamicRows:
    """A dynamic table, trained by a batch's distinct keys."""

    def __init__(self, seed: int):
        self.table = DynamicTable(DIM, f"dynamic_{seed}", SIZES, seed=seed)
        self.num_bytes = self.table.num_bytes

    def lookup(self, keys: tf.Tensor) -> tf.Tensor:
        return self.table.lookup(keys)

    def train(
        self,
        keys: tf.Tensor,
        step: tf.Tensor,
        loss_of: Callable[[tf.Tensor], tf.Tensor],
        weights: list[tf.Variable],
    ) -> list[tf.Tensor]:
        distinct, position = tf.unique(keys)
        slots = self.table.resolve(distinct, step)
        rows = self.table.gather(slots)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = loss_of(tf.gather(rows, position))
        row_gradients, gradients = tape.gradient(loss, [rows, weights])
        self.table.update(slots, tf.convert_to_tensor(row_gradients), _TABLE_LEARNING_RATE.value)
        return gradients


class Learner:
    """A small model over a table's rows: one hidden layer on [row, query · row, features]."""

    def __init__(self, rows: HashedRows | DynamicRows, seed: int):
        keras.utils.set_random_seed(seed)
        self.rows = rows
        self._query = keras.layers.Dense(DIM)
        self._hidden = keras.layers.Dense(32, activation="relu")
        self._logit = keras.layers.Dense(1)
        self._optimizer = keras.optimizers.Adam(LEARNING_RATE)
        self._score(tf.zeros([1, DIM]), tf.zeros([1, FEATURES]))
        layers = (self._query, self._hidden, self._logit)
        self._weights = [w for layer in layers for w in layer.trainable_weights]
        self._optimizer.build(self._weights)
        self.steps = 0
        # Graphs of its own: one Learner's variables aren't another's.
        self._train = tf.function(self._train_step, autograph=False, reduce_retracing=True)
        self._predict = tf.function(
            lambda keys, features: self._score(self.rows.lookup(keys), features), autograph=False
        )

    def test(self, day: Day) -> np.ndarray:
        """Scores of a day's examples, float32 [n]."""
        return self._predict(tf.constant(day.keys), tf.constant(day.features)).numpy()

    def train(self, day: Day) -> None:
        for low in range(0, STEPS_A_DAY * BATCH, BATCH):
            part = slice(low, low + BATCH)
            batch = (tf.constant(x[part]) for x in (day.keys, day.features, day.labels))
            self._train(*batch, tf.constant(self.steps, tf.int64))
            self.steps += 1
            if isinstance(self.rows, DynamicRows) and self.steps % EVICT_EVERY == 0:
                self.rows.table.evict(tf.constant(self.steps, tf.int64))

    def _train_step(
        self, keys: tf.Tensor, features: tf.Tensor, labels: tf.Tensor, step: tf.Tensor
    ) -> None:
        def loss_of(rows: tf.Tensor) -> tf.Tensor:
            logits = self._score(rows, features)
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))

        gradients = self.rows.train(keys, step, loss_of, self._weights)
        self._optimizer.apply_gradients(zip(gradients, self._weights, strict=True))

    def _score(self, rows: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        x = tf.concat([rows, self._query(features) * rows, features], axis=-1)
        return self._logit(self._hidden(x))[:, 0]


def contenders(seed: int) -> dict[str, Learner]:
    """Three learners of the same memory (the hashed tables' is rounded up to whole rows)."""
    dynamic = DynamicRows(seed)
    rows = -(-dynamic.num_bytes // ((DIM + 1) * 4))
    plain = EmbeddingTable(rows, DIM, f"plain_{seed}", seed=seed)
    multi = MultiHashTable(
        NUM_RESERVED + 2**62,
        DIM,
        f"multi_{seed}",
        private_rows=NUM_RESERVED,
        shared_rows=rows - NUM_RESERVED,
        seed=seed,
    )
    hashed = rows - NUM_RESERVED
    return {
        "dynamic": Learner(dynamic, seed),
        "plain hashing": Learner(
            HashedRows(plain, lambda k: NUM_RESERVED + bucket(k, hashed)), seed
        ),
        "multi-hash": Learner(HashedRows(multi, lambda k: k), seed),
    }


def run(seed: int) -> tuple[dict[str, dict[str, float]], dict[str, int], list[dict]]:
    """One month -> AUC by contender and slice, bytes by contender, lifecycle a day."""
    learners = contenders(seed)
    scores: dict[str, list[np.ndarray]] = {name: [] for name in learners}
    tested, lifecycle = [], []
    table = learners["dynamic"].rows.table
    for number, day in enumerate(month(seed)):
        if number >= WARM_UP_DAYS:
            tested.append(day)
            for name, learner in learners.items():
                scores[name].append(learner.test(day))
        for learner in learners.values():
            learner.train(day)
        record = {"day": number + 1, "step": learners["dynamic"].steps} | table.lifecycle()
        lifecycle.append(record | {"bytes": table.num_bytes})
    labels = np.concatenate([day.labels for day in tested])
    age = np.concatenate([day.age for day in tested])
    slices = {
        "all": age >= 0,
        "fresh": age <= FRESH_DAYS,
        "fresh, seen before": (age <= FRESH_DAYS) & (age > 0),
        "older": age > FRESH_DAYS,
    }
    found = {}
    for name, parts in scores.items():
        all_scores = np.concatenate(parts)
        found[name] = {s: auc(labels[mask], all_scores[mask]) for s, mask in slices.items()}
    return found, {name: learner.rows.num_bytes for name, learner in learners.items()}, lifecycle


def main(argv: list[str]) -> None:
    del argv
    runs = [run(int(seed)) for seed in _SEEDS.value]
    found, sizes, lifecycle = zip(*runs, strict=True)
    tables = [_quality(found, sizes[0]), _lifecycle(lifecycle[0], _SEEDS.value[0])]
    text = io.StringIO()
    for table in tables:
        Console(file=text, width=120).print(table)
    print(text.getvalue())
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text.getvalue())


def _quality(found: tuple[dict[str, dict[str, float]], ...], sizes: dict[str, int]) -> Table:
    """AUC, and what the dynamic table gains over each of the others in the same month."""
    table = Table("AUC, mean ± std", *found[0]["dynamic"], "bytes", box=None)
    for name in found[0]:
        table.add_row(name, *_mean_and_std([one[name] for one in found]), f"{sizes[name]:,}")
    for name in list(found[0])[1:]:
        gains = [{p: one["dynamic"][p] - auc for p, auc in one[name].items()} for one in found]
        table.add_row(f"gain over {name}", *_mean_and_std(gains, "+"), "")
    return table


def _mean_and_std(values: list[dict[str, float]], sign: str = "") -> list[str]:
    """A cell a part; the standard deviation is the sample's, over the seeds."""
    columns = [[one[part] for one in values] for part in values[0]]
    spread = [np.std(c, ddof=1) if len(c) > 1 else 0.0 for c in columns]
    return [f"{np.mean(c):{sign}.4f} ± {s:.4f}" for c, s in zip(columns, spread, strict=True)]


def _lifecycle(records: list[dict], seed: str) -> Table:
    table = Table(*records[0], title=f"dynamic table, a day (seed {seed})", box=None)
    for record in records:
        table.add_row(*(f"{value:,}" for value in record.values()))
    return table


if __name__ == "__main__":
    app.run(main)
