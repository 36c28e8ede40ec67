"""The next item that a user takes, ranked among 99 sampled ones and among all, by a run's models.

    python -m benchmarks.quality.next_item --run=runs/simulator --task=click --item=product
        [--moment=page] [--models=FOLDER,…]

PeterRec's evaluation of item recommendation (§4.1: HR@5 and MRR@5 against 99 uniformly sampled
negatives), and beside it the same against the whole catalogue, as rankings of samples can order
models otherwise than full ones do (Krichene & Rendle 2020). A query is an evaluation target of
label 1: the model, a SavedModel that sees the events the target saw, is asked about every item of
the run's instances, with the candidate features some target (the last in file order) had; those
of `--moment` tell of the request (a page, an hour), not the item, and are the query's own. Other
items that the user was shown in the same window don't compete. `popularity` ranks by how often
training targets of label 1 name an item.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import pathlib  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.channels import Channel  # noqa: E402
from data.spec import Spec  # noqa: E402
from modules.metrics.ranking import (  # noqa: E402
    hit_rate,
    ndcg,
    ranks,
    reciprocal_rank,
    sample_negatives,
)
from tfx_pipeline.catalogue import (  # noqa: E402
    Candidate,
    candidates_of,
    examples_of,
    fill,
    items_of,
    offer,
    values_of,
)
from tfx_pipeline.commands import pushed  # noqa: E402
from tfx_pipeline.comparison.finished_run import finished_run  # noqa: E402
from tfx_pipeline.layout import Layout  # noqa: E402

_RUN = flags.DEFINE_string("run", "runs/simulator", "Folder of the finished run.")
_TASK = flags.DEFINE_string("task", "click", "A binary task per impression.")
_ITEM = flags.DEFINE_string("item", "product", "Candidate channel that identifies an item.")
_MODELS = flags.DEFINE_list(
    "models", [], "Folders of SavedModels, as comparison/…/finetune (default: the pushed one)."
)
_MOMENT = flags.DEFINE_list(
    "moment", [], "Candidate channels of the moment; those of `$interval` are anyway."
)
_QUERIES = flags.DEFINE_integer("queries", 2_000, "At most so many, drawn from all.", 1)
_NEGATIVES = flags.DEFINE_integer("negatives", 99, "Sampled, for each query.", 1)
_K = flags.DEFINE_integer("k", 5, "Of HR@k, MRR@k and NDCG@k.", 1)
_SEED = flags.DEFINE_integer("sample_seed", 0, "Of queries and negatives, which all models share.")
_METRICS: dict[str, Callable[[np.ndarray, int], float]] = {
    "HR": hit_rate,
    "MRR": reciprocal_rank,
    "NDCG": ndcg,
}
_TRAIN, _EVAL = 0, 1
_SCORES_AT_ONCE = 2**16


class Query(NamedTuple):
    """example: an instance of the events that the target saw, without targets; own: the target's
    candidate features; target: its item's number; shown: those of others in the same window."""

    example: tf.train.Example
    own: Candidate
    target: int
    shown: frozenset[int]


def main(argv: list[str]) -> None:
    del argv
    layout = Layout(pathlib.Path(_RUN.value).expanduser().absolute())
    run = finished_run(layout)
    files = sorted(str(path) for path in run.instances.glob("Split-*/*.gz"))
    rng = np.random.default_rng(_SEED.value)
    items = items_of(files, run.spec, _ITEM.value)
    asked = queries_of(files, run.spec, _TASK.value, _ITEM.value, list(items))
    if not asked:
        sys.exit(f"--task={_TASK.value}: no evaluation target of label 1 names an item")
    chosen = rng.permutation(len(asked))[: _QUERIES.value]
    queries = [asked[place] for place in chosen]
    negatives = sampled(queries, len(items), _NEGATIVES.value, rng)
    table = Table("model", "among", *(f"{name}@{_K.value}" for name in _METRICS), box=None)
    table.columns[0].overflow = "fold"

    def add(name: str, scores_of: Callable[[Sequence[Query]], np.ndarray]) -> None:
        few, every = evaluate(scores_of, queries, negatives, len(items))
        table.add_row(name, f"{_NEGATIVES.value + 1} items", *measured(few, _K.value))
        table.add_row("", f"all {len(items)}", *measured(every, _K.value))

    popular = popularity(files, run.spec, _TASK.value, _ITEM.value, list(items))
    add("popularity", lambda some: np.tile(popular, (len(some), 1)))
    for folder in _MODELS.value or [str(pushed.version(layout))]:
        served = tf.saved_model.load(folder).signatures["serving_default"]
        moment = run.spec.moment_channels(_MOMENT.value)
        add(folder, scorer(served, list(items.values()), moment, run.spec, _TASK.value))
    console = Console()
    console.print(f"{len(queries)} of {len(asked)} queries, {len(items)} items", markup=False)
    console.print(table)


def queries_of(
    files: Sequence[str], spec: Spec, task: str, item: str, names: Sequence[str]
) -> list[Query]:
    """Every evaluation target of label 1 that names an item; numbers are places in `names`."""
    number = {name: place for place, name in enumerate(names)}
    queries = []
    for example in examples_of(files):
        candidates = candidates_of(example, spec, item)
        shown = {number[name] for name, _ in candidates if name is not None}
        labels = values_of(example, spec.task(task).label_feature)
        splits = values_of(example, "target_split")
        positions = values_of(example, "target_position")
        for place, (name, own) in enumerate(candidates):
            if name is not None and splits[place] == _EVAL and labels[place] == 1.0:
                seen = seeing(example, spec, positions[place])
                others = frozenset(shown - {number[name]})
                queries.append(Query(seen, own, number[name], others))
    return queries


def seeing(example: tf.train.Example, spec: Spec, position: int) -> tf.train.Example:
    """The instance with its first `position` events, and without targets."""
    cut = tf.train.Example()
    cut.CopyFrom(example)
    features = cut.features.feature
    for channel in spec.scope("sequence"):
        kept = position
        if getattr(channel, "multi_valued", False):
            counts = features[channel.count_feature].int64_list
            kept = sum(counts.value[:position])
            del counts.value[position:]
        kind = features[channel.feature].WhichOneof("kind")
        if kind:
            del getattr(features[channel.feature], kind).value[kept:]
    offer(cut, [], spec)
    return cut


def popularity(
    files: Sequence[str], spec: Spec, task: str, item: str, names: Sequence[str]
) -> np.ndarray:
    """How many training targets of label 1 name each item, float [V]."""
    count = dict.fromkeys(names, 0.0)
    for example in examples_of(files):
        labels = values_of(example, spec.task(task).label_feature)
        splits = values_of(example, "target_split")
        for place, (name, _) in enumerate(candidates_of(example, spec, item)):
            if name is not None and splits[place] == _TRAIN and labels[place] == 1.0:
                count[name] += 1
    return np.array(list(count.values()))


def scorer(
    served: Callable[..., Mapping[str, tf.Tensor]],
    items: Sequence[Candidate],
    moment: Sequence[Channel],
    spec: Spec,
    task: str,
) -> Callable[[Sequence[Query]], np.ndarray]:
    """A function of queries -> the score of every item, [N, V].

    Args:
      served: a SavedModel's `serving_default`.
      moment: candidate channels of which a query's own values count.
    """
    offered = tf.train.Example()
    fill(offered, items, [c for c in spec.scope("candidate") if c not in moment], spec)

    def asked(query: Query) -> bytes:
        example = tf.train.Example()
        example.CopyFrom(query.example)
        example.MergeFrom(offered)
        fill(example, [query.own] * len(items), moment, spec)
        return example.SerializeToString()

    def scores(queries: Sequence[Query]) -> np.ndarray:
        return served(examples=tf.constant([asked(query) for query in queries]))[task].numpy()

    return scores


def sampled(
    queries: Sequence[Query], num_items: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Negatives of each query, int [N, count], none of what its user was shown."""
    shown = [(n, item) for n, query in enumerate(queries) for item in query.shown]
    pairs = np.array(shown, np.int64).reshape(-1, 2)
    return sample_negatives(targets_of(queries), num_items, count, rng, pairs)


def evaluate(
    scores_of: Callable[[Sequence[Query]], np.ndarray],
    queries: Sequence[Query],
    negatives_NC: np.ndarray,
    num_items: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The target's rank among itself and its negatives, and among all items, float [N] each."""
    among_sampled, among_all = [], []
    size = max(1, _SCORES_AT_ONCE // num_items)
    for start in range(0, len(queries), size):
        some = queries[start : start + size]
        target_N, scores_NV = targets_of(some), scores_of(some)
        excluded_NV = np.zeros(scores_NV.shape, bool)
        for row, query in enumerate(some):
            excluded_NV[row, list(query.shown)] = True
        among_all.append(ranks(scores_NV, target_N, excluded_NV))
        chosen = np.column_stack([target_N, negatives_NC[start : start + size]])
        few_NC = np.take_along_axis(scores_NV, chosen, axis=1)
        among_sampled.append(ranks(few_NC, np.zeros(len(some), np.int64)))
    return np.concatenate(among_sampled), np.concatenate(among_all)


def targets_of(queries: Sequence[Query]) -> np.ndarray:
    return np.array([query.target for query in queries], np.int64)


def measured(ranks_N: np.ndarray, k: int) -> list[str]:
    """Each of `_METRICS` at k."""
    return [f"{metric(ranks_N, k):.4f}" for metric in _METRICS.values()]


if __name__ == "__main__":
    app.run(main)
