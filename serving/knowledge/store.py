"""What a store of knowledge vectors takes and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from serving.errors import failed_precondition, invalid
from serving.knowledge import keys

USER, ITEM, USER_CATEGORY = "user", "item", "user_category"
KINDS = (USER, ITEM, USER_CATEGORY)

MAX_VERSIONS = 5
"""KEEP §5.3: enough for every online model to find the version it was trained with."""


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """The answer to a batch: all of one version.

    Attributes:
      version: the version all rows are of.
      vectors: kind -> float32 [B, D_kind], for the kinds asked for; zero where not found. D_kind
        is 0 for a kind this version has no vectors of.
      found: kind -> bool [B].
    """

    version: int
    vectors: Mapping[str, np.ndarray]
    found: Mapping[str, np.ndarray]

    def product(self) -> np.ndarray:
        """The decomposition K_u ⊙ K_i (KEEP §5.2.1), float32 [B, D]; zero where one is missing.

        Raises:
          errors.ServingError: FAILED_PRECONDITION, users or items weren't asked for, or this
            version has none.
        """
        for kind in (USER, ITEM):
            if kind not in self.vectors:
                raise failed_precondition(
                    f"the product K_u ⊙ K_i needs users and items; no {kind}s were asked for"
                )
            if not self.vectors[kind].shape[1]:
                raise failed_precondition(
                    f"the product K_u ⊙ K_i needs user and item vectors, and version"
                    f" {self.version} has no {kind} vectors: publish an export with {kind}_id too"
                )
        return self.vectors[USER] * self.vectors[ITEM]

    def concatenated(self) -> np.ndarray:
        """KEEP eq. 6, [K_u, K_i, K_u ⊙ K_i, K_uc], float32 [B, ΣD]. Raises as `product`."""
        product = self.product()
        parts = [self.vectors[USER], self.vectors[ITEM], product]
        if USER_CATEGORY in self.vectors:
            parts.append(self.vectors[USER_CATEGORY])
        return np.concatenate(parts, axis=1)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Vectors to publish: a chunk of one kind. Made by `user_rows` and its like.

    Attributes:
      kind: one of `KINDS`.
      keys: uint64 [N, 2].
      vectors: [N, D].
      category_keys: uint64 [C, 2], the categories the pairs are of; none for other kinds.
    """

    kind: str
    keys: np.ndarray
    vectors: np.ndarray
    category_keys: np.ndarray


def user_rows(users: Sequence[str], vectors: np.ndarray) -> Rows:
    """K_u: a vector [D] for each user; vectors [N, D]."""
    return _rows(USER, keys.of_ids(users), vectors)


def item_rows(items: Sequence[str], vectors: np.ndarray) -> Rows:
    """K_i: a vector [D] for each item; vectors [N, D], D as the users'."""
    return _rows(ITEM, keys.of_ids(items), vectors)


def user_category_rows(
    users: Sequence[str], categories: Sequence[str], vectors: np.ndarray
) -> Rows:
    """K_uc, the degeneration (KEEP §5.2.2): vectors [N, D] for N pairs."""
    if len(users) != len(categories):
        raise invalid(f"{len(users)} users for {len(categories)} categories")
    pairs = keys.of_pairs(keys.of_ids(users), keys.of_categories(categories))
    return _rows(USER_CATEGORY, pairs, vectors, keys.of_categories(list(set(categories))))


_NONE = np.zeros((0, 2), np.uint64)


def _rows(
    kind: str, row_keys: np.ndarray, vectors: np.ndarray, category_keys: np.ndarray = _NONE
) -> Rows:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.shape[1]:
        raise invalid(f"{kind} vectors are floats [N, D], not {vectors.dtype} {vectors.shape}")
    if len(vectors) != len(row_keys):
        raise invalid(f"{len(row_keys)} {kind} keys for {len(vectors)} vectors")
    return Rows(kind, row_keys, vectors, category_keys)


class Store(Protocol):
    """Up to `MAX_VERSIONS` versions, numbered by positive integers; the largest is the latest.

    Every method raises `errors.ServingError`. Safe to use from several threads and processes.
    """

    def versions(self) -> tuple[int, ...]:
        """The versions that can be asked for, oldest first."""

    def get(self, wanted: Mapping[str, np.ndarray], version: int | None) -> Knowledge:
        """Looks keys up, all in one version.

        Args:
          wanted: kind -> keys uint64 [B, 2].
          version: the latest if None.

        Raises:
          errors.ServingError: NOT_FOUND, with the versions there are.
        """

    def publish(self, version: int, chunks: Iterable[Rows]) -> None:
        """Writes a version, shows it to readers at once and whole, drops the oldest if need be.

        Args:
          version: larger than the oldest one kept, and not published yet.
          chunks: read once, in any order of kinds; memory is bounded by one chunk, not the whole.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, a bad number or a key that comes twice;
            nothing is published then.
        """

    def delete_user(self, user: str) -> bool:
        """Erases K_u and every K_uc of a user from every version (the right to erasure).

        On return the vectors and keys are overwritten in the store. A version published later
        holds whatever its export holds: erase the user there as well.

        Returns:
          Whether anything was stored.
        """


def stored(vectors: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The vectors in a store's dtype. Raises INVALID_ARGUMENT where one isn't finite in it."""
    with np.errstate(over="ignore"):
        written = vectors.astype(dtype, copy=False)
    if not np.isfinite(written).all():
        raise invalid(f"a vector has a number that {dtype} can't hold")
    return written


def check_new(version: int, known: Sequence[int], keep: int) -> None:
    """Raises INVALID_ARGUMENT unless `version` may be published beside `known`."""
    if not 0 < version < 2**63:
        raise invalid(f"a version is a positive 64-bit integer, not {version}")
    if version in known:
        raise invalid(f"version {version} is published already, and versions never change")
    if len(known) >= keep and version < min(known):
        raise invalid(
            f"version {version} is older than the {keep} kept ones and would be dropped at once"
        )


def check_keep(keep: int) -> int:
    """Raises INVALID_ARGUMENT unless 1 <= keep <= `MAX_VERSIONS`."""
    if not 1 <= keep <= MAX_VERSIONS:
        raise invalid(f"keep between 1 and {MAX_VERSIONS} versions, not {keep}")
    return keep


def check_dims(dims: Mapping[str, int]) -> None:
    """Raises INVALID_ARGUMENT unless K_u ⊙ K_i is defined for vectors of these widths."""
    if USER in dims and ITEM in dims and dims[USER] != dims[ITEM]:
        raise invalid(
            f"users have {dims[USER]} floats and items {dims[ITEM]}: K_u ⊙ K_i needs as many"
        )
