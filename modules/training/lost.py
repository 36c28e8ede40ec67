"""Which errors say that another process is lost, and that starting again is the remedy."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.distribute.coordinator import cluster_coordinator

from modules.embeddings.tier.layout import TierGone
from modules.training.checkpoint.error import DamagedError

_LOST = (
    tf.errors.UnavailableError,  # nobody listens, or the connection broke
    tf.errors.AbortedError,  # restarted: it doesn't know us
    tf.errors.CancelledError,  # a step of ours that another one's loss ended
    tf.errors.DeadlineExceededError,
    TierGone,
    DamagedError,  # what a lost shard was to be restored from: an older checkpoint is
)
_WRAPPERS = (cluster_coordinator.ClosureAbortedError, cluster_coordinator.ClosureInputError)
_NEW_SERVER = ("unknown device", "unable to find the relevant tensor remote_handle")
"""In a message: a server was restarted so fast that it answered as if it were the old one."""


def lost_another(error: BaseException) -> bool:
    """Whether the error is the doing of a process that died, hangs, or can't be reached."""
    if isinstance(error, _WRAPPERS):
        error = error.original_exception
    if isinstance(error, tf.errors.OpError) and not isinstance(error, _LOST):
        return any(sign in error.message.lower() for sign in _NEW_SERVER)
    return isinstance(error, _LOST)
