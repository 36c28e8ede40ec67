"""128-bit keys of users, items and (user, category) pairs.

A key is the BLAKE2b hash of the id's UTF-8 bytes, so neither store holds an id. No one can make
two ids that share a key (2^64 tries for any pair), and by chance among 10^9 ids the odds of one
shared pair are n²/2^129 < 10^-20; so a key that matches is the id that was asked for.
A pair's key is the sum of the user's key and the category's, modulo 2^64 in each half: it costs
no hash of its own, and all keys of a user follow from the user and the list of categories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.errors import invalid

BYTES = 16


def of_ids(ids: Sequence[str]) -> np.ndarray:
    """Keys of user or item ids, uint64 [N, 2]. Any text, also the empty one, is an id.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, an id that isn't text or has no UTF-8.
    """
    return _of_distinct(ids, {})


def of_categories(categories: Sequence[str]) -> np.ndarray:
    """What a category adds to a user's key, uint64 [N, 2]. Raises as `of_ids`."""
    return _of_distinct(categories, {"person": b"category"})


def of_pairs(user_keys: np.ndarray, category_keys: np.ndarray) -> np.ndarray:
    """Keys of (user, category), uint64 [N, 2], of two such arrays."""
    return user_keys + category_keys


def _of_distinct(ids: Sequence[str], options: dict[str, Any]) -> np.ndarray:
    """Hashes an id that is repeated, as one user of many candidates is, only once."""
    distinct = dict.fromkeys(ids)
    if len(distinct) == len(ids):
        return _hash(ids, options)
    place = {name: i for i, name in enumerate(distinct)}
    return _hash(list(distinct), options)[[place[name] for name in ids]]


def _hash(ids: Sequence[str], options: dict[str, Any]) -> np.ndarray:
    blake2b = hashlib.blake2b
    try:
        digests = [blake2b(i.encode(), digest_size=BYTES, **options).digest() for i in ids]
    except (AttributeError, UnicodeEncodeError):
        raise invalid(f"an id is text with a UTF-8 form, not {_first_bad(ids)!r:.60}") from None
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _first_bad(ids: Sequence[object]) -> object:
    for name in ids:
        try:
            name.encode()  # type: ignore[attr-defined]
        except (AttributeError, UnicodeEncodeError):
            return name
    raise AssertionError("called only when one is bad")
