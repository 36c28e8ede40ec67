"""Which tables a tier holds, and how: every trainer that shares it must mean the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

from modules.embeddings.adagrad import AdagradKind

FloatType = Literal["float32", "float16", "bfloat16"]


class TierError(Exception):
    """The tier can't be used; the message names the server's address, the reason and the fix."""


class TierGone(TierError):
    """A server was away for longer than we wait; it may come back."""


@dataclasses.dataclass(frozen=True)
class TierTable:
    """A table [num_rows, dim] whose rows start uniform in ±init_scale."""

    num_rows: int
    dim: int
    init_scale: float = 0.05


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a tier was made with.

    Attributes:
      seed: the run's; a table's own is `initialization.table_seed(name, seed)`.
      rest_dtype: of rows in the servers' memory.
    """

    tables: Mapping[str, TierTable]
    optimizer: AdagradKind
    rest_dtype: FloatType
    seed: int
    num_shards: int

    def of_shard(self, shard: int) -> str:
        """What a server keeps, to compare others with."""
        return json.dumps({"shard": shard, **dataclasses.asdict(self)}, sort_keys=True)


def difference(held: str, asked: str) -> str:
    """In words, where two `Layout.of_shard` differ."""
    old, new = _flat(json.loads(held)), _flat(json.loads(asked))
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "; ".join(
        f"{key} is {old.get(key, 'missing')} there and {new.get(key, 'missing')} here"
        for key in keys
    )


def _flat(value: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, field in value.items():
        name = f"{prefix}{key}"
        flat |= _flat(field, f"{name}.") if isinstance(field, dict) else {name: field}
    return flat
