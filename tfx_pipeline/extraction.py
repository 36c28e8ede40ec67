"""A served model's vectors of all users, items and categories, as files (KEEP §4.2.3, §5.2).

The files are what the knowledge centre publishes, and what `knowledge.path` of a spec plugs in.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from data.columns import id_dtype
from data.spec import CategoryChannel, Channel, IdChannel, Spec
from modules.embeddings.knowledge import ITEM, USER, USER_CATEGORY

SIGNATURE = "extract"
BATCH = 256
_PAIRS = 16 * BATCH
"""(User, category) pairs answered at once: target attention holds some floats for each event of
each."""
Candidate = Mapping[str, list]
"""An item's candidate features, as an instance has them."""


def kinds_of(spec: Spec) -> tuple[str, ...]:
    """What a model gives: K_uc (§5.2.2) if all it knows of an item is its category, so that
    `knowledge.item` names the same channel; else K_u and K_i."""
    knowledge = spec.knowledge
    if knowledge is None:
        raise ValueError(f"{spec.name}: no `knowledge` in its spec: nothing says what an item is")
    return (USER_CATEGORY,) if knowledge.item == knowledge.category else (USER, ITEM)


def extract(model: str, files: Sequence[str], spec: Spec, folder: pathlib.Path) -> dict[str, int]:
    """Writes `<kind>.parquet` to `folder` for each of `kinds_of(spec)`.

    Args:
      model: a SavedModel with the signature `extract`.
      files: gzipped TFRecords of raw instances; of a user, the newest window counts, of an item
        its last target.

    Returns:
      Rows by kind.

    Raises:
      ValueError: the model has no such signature, or the instances have no item.
    """
    kinds = kinds_of(spec)
    signatures = tf.saved_model.load(model).signatures
    if SIGNATURE not in signatures:
        raise ValueError(
            f"{model}: no signature {SIGNATURE!r}; train it with `knowledge` and without its `path`"
        )
    run = signatures[SIGNATURE]
    items = _items(files, spec)
    if not items:
        raise ValueError(f"{', '.join(files)}: no target names an item")
    folder.mkdir(parents=True, exist_ok=True)
    return {
        kind: _write(folder / f"{kind}.parquet", _VECTORS[kind](run, files, items, spec))
        for kind in kinds
    }


Rows = Iterator[tuple[dict[str, list[str]], np.ndarray]]
"""Ids by column, each [N], and vectors [N, D]."""


def _users(run, files: Sequence[str], items: Mapping, spec: Spec) -> Rows:
    for users, examples in _newest_windows(files, spec, []):
        yield {"user_id": users}, run(examples=examples)["user"].numpy()


def _items_alone(run, files: Sequence[str], items: Mapping, spec: Spec) -> Rows:
    for names in _chunks(items, BATCH):
        example = tf.train.Example()
        _offer(example, [items[name] for name in names], spec)
        vectors = run(examples=tf.constant([example.SerializeToString()]))["item"]
        yield {"item_id": names}, vectors[0].numpy()


def _users_by_category(run, files: Sequence[str], items: Mapping, spec: Spec) -> Rows:
    categories = list(items)  # Here an item is its category.
    for users, examples in _newest_windows(files, spec, list(items.values())):
        vectors = run(examples=examples)["user_item"].numpy()
        pairs = list(itertools.product(users, categories))
        columns = {"user_id": [u for u, _ in pairs], "category": [c for _, c in pairs]}
        yield columns, vectors.reshape(len(pairs), -1)


_VECTORS = {USER: _users, ITEM: _items_alone, USER_CATEGORY: _users_by_category}


def _newest_windows(
    files: Sequence[str], spec: Spec, candidates: list[Candidate]
) -> Iterator[tuple[list[str], tf.Tensor]]:
    """Users and their newest windows, in batches, each offered `candidates`."""
    newest = (e for e in _examples(files) if _values(e, "window_last") == [1])
    users_at_once = max(1, min(BATCH, _PAIRS // max(1, len(candidates))))
    for batch in _chunks(newest, users_at_once):
        for example in batch:
            _offer(example, candidates, spec)
        users = [_values(example, "user_id")[0].decode() for example in batch]
        yield users, tf.constant([example.SerializeToString() for example in batch])


def _items(files: Sequence[str], spec: Spec) -> dict[str, Candidate]:
    """Every item by its id's text, with the candidate features it was last shown with."""
    assert spec.knowledge is not None
    channels = spec.scope("candidate")
    item = next(c for c in channels if c.name == spec.knowledge.item)
    found: dict[str, Candidate] = {}
    for example in _examples(files):
        columns = {c.feature: _per_target(example, c) for c in channels}
        for place, (value,) in enumerate(columns[item.feature]):
            if value not in (b"", -1):
                name = value.decode() if isinstance(value, bytes) else str(value)
                found[name] = {feature: lists[place] for feature, lists in columns.items()}
    return found


def _per_target(example: tf.train.Example, channel: Channel) -> list[list]:
    values = _values(example, channel.feature)
    if not getattr(channel, "multi_valued", False):
        return [[value] for value in values]
    flat = iter(values)
    return [list(itertools.islice(flat, n)) for n in _values(example, channel.count_feature)]


def _offer(example: tf.train.Example, candidates: list[Candidate], spec: Spec) -> None:
    """Makes `candidates` an instance's targets, which see all of its events."""
    features = example.features.feature
    for name in [n for n in features if n.startswith(("target_", "candidate_", "label_"))]:
        del features[name]
    for channel in spec.scope("candidate"):
        lists = [candidate[channel.feature] for candidate in candidates]
        flat = [value for values in lists for value in values]
        if isinstance(channel, IdChannel) and id_dtype(spec, channel) == "int":
            features[channel.feature].int64_list.value.extend(flat)
        elif isinstance(channel, IdChannel | CategoryChannel):
            features[channel.feature].bytes_list.value.extend(flat)
        else:
            features[channel.feature].float_list.value.extend(flat)
        if getattr(channel, "multi_valued", False):
            features[channel.count_feature].int64_list.value.extend(map(len, lists))


def _examples(files: Sequence[str]) -> Iterator[tf.train.Example]:
    for record in tf.data.TFRecordDataset(list(files), "GZIP").as_numpy_iterator():
        yield tf.train.Example.FromString(record)


def _values(example: tf.train.Example, name: str) -> list:
    feature = example.features.feature[name]
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def _chunks(things: Iterable, size: int) -> Iterator[list]:
    rest = iter(things)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def _write(path: pathlib.Path, rows: Rows) -> int:
    """Complete or not at all; how many there were."""
    partial, count = path.with_suffix(".partial"), 0
    with contextlib.ExitStack() as stack:
        writer = None
        for ids, vectors in rows:
            flat = pa.array(vectors.astype(np.float32).ravel())
            columns = {name: pa.array(values, pa.string()) for name, values in ids.items()}
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[-1])
            table = pa.table(columns)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, table.schema))
            writer.write_table(table)
            count += table.num_rows
    if count:
        partial.rename(path)
    return count
