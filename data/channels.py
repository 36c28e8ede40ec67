"""Channels: what is known of an event, a candidate or a user, each a column under a name.

Channels of many values are read through an embedding table, which several may share.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from data.strict import Fraction, Name, Strict

Scope = Literal["sequence", "candidate", "context"]

INTERVAL = "$interval"
"""Derived column, seconds (float): since the user's previous event (`sequence` scope) or
since the newest *visible* event (`candidate` scope). Missing where either time is."""


class _Channel(Strict):
    name: Name
    scope: Scope
    column: str = ""
    """Column of the event (or user) table; the channel's name unless given."""
    outcome: bool = False
    """Known only after the event (a click, a watch time): never a candidate channel."""
    mask_prediction: bool = False
    """Is a target of masked channel prediction (SuperMoE §3.1)."""
    max_missing: Fraction = 1.0
    """Largest fraction of missing values before the run stops with an anomaly."""

    @property
    def source_column(self) -> str:
        return self.column or self.name

    @property
    def feature(self) -> str:
        """The channel's name in an instance, in Transform's output and in a request."""
        return f"{self.scope}_{self.name}"

    @property
    def count_feature(self) -> str:
        """Multi-valued channels: how many of the flat values belong to each event/target."""
        return f"{self.feature}_count"


class _TableChannel(_Channel):
    multi_valued: bool = False
    table: Name | None = None
    """Embedding table; channels that name the same one share it. Own table unless given."""
    dim: Annotated[int, pydantic.Field(ge=1, le=4096)] | None = None

    @property
    def table_name(self) -> str:
        return self.table or self.name


class CategoryChannel(_TableChannel):
    """A small vocabulary of strings, learned by Transform or closed by `values`. Missing: ''."""

    kind: Literal["category"]
    values: tuple[str, ...] | None = None
    """Closed vocabulary: any other value is an anomaly."""
    top_k: Annotated[int, pydantic.Field(ge=1)] | None = None
    min_count: Annotated[int, pydantic.Field(ge=1)] | None = None


class Compression(Strict):
    """An id table that must shrink: the hashed ids are composed from fewer stored rows."""

    method: Literal["multi_hash", "quotient_remainder"]
    """Sum of the rows of several hashes, or product of a remainder's and a quotient's row."""
    rows: Annotated[int, pydantic.Field(ge=2)]
    """Stored rows of all ids outside `top_k`; the channel's own `rows` says how many hash
    buckets are told apart, which costs nothing and may be huge."""
    hashes: Annotated[int, pydantic.Field(ge=2, le=8)] | None = None
    """multi_hash only; 2 unless given."""

    @property
    def num_hashes(self) -> int:
        return self.hashes or 2

    def can_tell_apart(self, buckets: int) -> bool:
        """Whether no two buckets need to have the same row."""
        return self.method == "multi_hash" or self.rows**2 >= 4 * buckets

    @pydantic.model_validator(mode="after")
    def _hashes_go_with_multi_hash(self) -> Compression:
        if self.hashes and self.method != "multi_hash":
            raise ValueError("'hashes' goes with method multi_hash")
        return self


class Dynamic(Strict):
    """An id table without a vocabulary: ids get a row when they prove frequent, and lose it when
    they stop coming."""

    capacity: Annotated[int, pydantic.Field(ge=8, multiple_of=8)]
    """Ids that have a row of their own at any time."""
    tail_rows: Annotated[int, pydantic.Field(ge=1)]
    """Hashed rows that all other ids share."""
    admit_after: Annotated[int, pydantic.Field(ge=1, le=255)] = 2
    """Batches an id must lately have been in to get a row."""
    evict_after: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Steps without the id until its row is free for another; null: never."""


class IdChannel(_TableChannel):
    """Many ids. Frequent ones (`top_k`) get private rows, the rest share `rows` hashed ones;
    or, with `dynamic`, those that come often at the time do.

    int ids are non-negative; missing is -1. string ids: missing is ''.
    """

    kind: Literal["id"]
    dtype: Literal["int", "string"] | None = None
    rows: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Hash buckets for ids outside `top_k`."""
    top_k: Annotated[int, pydantic.Field(ge=0)] | None = None
    min_count: Annotated[int, pydantic.Field(ge=1)] | None = None
    """An id seen fewer times in training data is hashed even if within `top_k`."""
    compression: Compression | None = None
    dynamic: Dynamic | None = None


class DenseChannel(_Channel):
    """A number. Missing is NaN, all the way into the model, which learns from the absence."""

    kind: Literal["dense"]
    normalize: Literal["none", "z_score", "log1p", "bucketize"] = "z_score"
    """`log1p`: sign(x)·log(1+|x|), then z-score; `bucketize`: quantile rank in [0, 1]."""
    buckets: Annotated[int, pydantic.Field(ge=2, le=1024)] = 32


Channel = Annotated[
    CategoryChannel | IdChannel | DenseChannel, pydantic.Field(discriminator="kind")
]


def table_setting(channels: tuple[CategoryChannel | IdChannel, ...], key: str, default: Any) -> Any:
    """The value of `key` that any channel of a shared table gives, else `default`."""
    for channel in channels:
        value = getattr(channel, key, None)
        if value is not None:
            return value
    return default
