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

from data.spec import Spec
from modules.embeddings.knowledge import ITEM, USER, USER_CATEGORY
from tfx_pipeline.catalogue import Candidate, examples_of, items_of, offer, values_of

SIGNATURE = "extract"
BATCH = 256
_PAIRS = 16 * BATCH
"""(User, category) pairs answered at once: target attention holds some floats for each event of
each."""


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
    assert spec.knowledge is not None
    items = items_of(files, spec, spec.knowledge.item)
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
        offer(example, [items[name] for name in names], spec)
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
    newest = (e for e in examples_of(files) if values_of(e, "window_last") == [1])
    users_at_once = max(1, min(BATCH, _PAIRS // max(1, len(candidates))))
    for batch in _chunks(newest, users_at_once):
        for example in batch:
            offer(example, candidates, spec)
        users = [values_of(example, "user_id")[0].decode() for example in batch]
        yield users, tf.constant([example.SerializeToString() for example in batch])


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
