"""What goes wrong with checkpoints."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint can't be written or read; the message names the place and the reason."""


class DamagedError(CheckpointError):
    """A checkpoint is no longer what was written."""
