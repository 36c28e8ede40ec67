"""The knowledge centre's errors, each in one place."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from serving import errors


def corrupt(message: str) -> errors.ServingError:
    return errors.ServingError(grpc.StatusCode.DATA_LOSS, message)


def unavailable(message: str) -> errors.ServingError:
    return errors.ServingError(grpc.StatusCode.UNAVAILABLE, message)


def unknown_version(version: int | None, known: Iterable[int]) -> errors.ServingError:
    """NOT_FOUND; `version` None: the latest was asked for and there is none."""
    there = ", ".join(map(str, sorted(known))) or "none"
    what = "no version is published" if version is None else f"there is no version {version}"
    return errors.ServingError(grpc.StatusCode.NOT_FOUND, f"{what}; versions: {there}")
