"""The centre's one question: a batch of (user, item, category, version) (KEEP §5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from serving.errors import invalid
from serving.knowledge import keys
from serving.knowledge.store import ITEM, USER, USER_CATEGORY, Knowledge, Store


def lookup(
    store: Store,
    *,
    users: Sequence[str] = (),
    items: Sequence[str] = (),
    categories: Sequence[str] = (),
    version: int | None = None,
) -> Knowledge:
    """The vectors of B quadruples, all of one version.

    Args:
      users: B user ids, or none: then neither K_u nor K_uc is looked up.
      items: B item ids, or none: then K_i isn't looked up.
      categories: B category names of the items, or none: then K_uc isn't looked up.
      version: the latest if None; it is resolved once for the batch, and the answer names it.

    Raises:
      errors.ServingError: NOT_FOUND, no such version; INVALID_ARGUMENT, lists of different
        lengths, categories without users, an id that isn't text.
    """
    if len({len(ids) for ids in (users, items, categories) if len(ids)}) > 1:
        raise invalid(
            f"a batch has as many users as items and categories, not {len(users)},"
            f" {len(items)} and {len(categories)}"
        )
    if len(categories) and not len(users):
        raise invalid("categories are looked up for users, and no users are given")
    wanted = {}
    if len(users):
        wanted[USER] = keys.of_ids(users)
    if len(items):
        wanted[ITEM] = keys.of_ids(items)
    if len(categories):
        wanted[USER_CATEGORY] = keys.of_pairs(wanted[USER], keys.of_categories(categories))
    return store.get(wanted, version)
