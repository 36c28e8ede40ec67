"""Which of the versions on disk a model serves: FileSystemStoragePathSourceConfig's policies."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf import message


def wanted_versions(policy: message.Message, found: Collection[int]) -> list[int]:
    """The versions to serve, newest first.

    Args:
      policy: a ServableVersionPolicy; unset means the latest one.
      found: the versions on disk.
    """
    newest_first = sorted(found, reverse=True)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return newest_first
    if choice == "specific":
        return [number for number in newest_first if number in policy.specific.versions]
    return newest_first[: max(policy.latest.num_versions, 1)]


def missing_versions(policy: message.Message, found: Collection[int]) -> list[int]:
    """The versions a `specific` policy names that aren't on disk."""
    return sorted(set(policy.specific.versions) - set(found))
