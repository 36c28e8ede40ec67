"""One parameter server of the tier, through its deaths and restarts."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from modules.embeddings.tier.graph import CONTAINER, Call, ShardGraph
from modules.embeddings.tier.layout import Layout, TierError, TierGone, difference

v1 = tf.compat.v1

Chunks = Mapping[str, Sequence[str]]
"""Absolute prefixes of a checkpoint's chunks by table, oldest first."""

_LOST = (
    tf.errors.UnavailableError,  # nobody listens, or the connection broke
    tf.errors.DeadlineExceededError,  # stopped, or cut off
    tf.errors.AbortedError,  # restarted: it doesn't know the session
    tf.errors.CancelledError,
)
"""Says that the server is gone or new: the call is made again on a new session."""

_DOUBTFUL = (
    tf.errors.InternalError,  # gRPC's, on a broken stream
    tf.errors.UnknownError,  # the same; or a failing disk
    tf.errors.FailedPreconditionError,  # no such variable; or a folder that is none
)
"""May say the same, or be the call's own fault: it is made again once."""

_PREAMBLE = re.compile(r"Graph execution error:|From /job:.*:|\d+ root error\(s\) found\.")
_BACKOFF_SECONDS = (0.2, 5.0)


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
      call: a call that takes longer counts as lost, and is made again.
      load: the same for initialising or restoring all tables, and for writing one chunk.
      total: so long a server may be away.
    """

    call: float = 20.0
    load: float = 600.0
    total: float = 900.0


@dataclasses.dataclass
class ShardStatistics:
    """What a trainer had to do with one server so far."""

    address: str
    pulls: int = 0
    pushes: int = 0
    bytes_pulled: int = 0
    bytes_pushed: int = 0
    waited_seconds: float = 0.0
    """For a lost server, of the calls that saw it first."""
    reconnects: int = 0
    restores: int = 0
    """Times that this trainer brought back all tables of a server that came up empty."""


def clear(address: str) -> None:
    """Has a server forget its tables, for a run with other ones."""
    v1.Session.reset(f"grpc://{address}", [CONTAINER])


class Connection:
    """Runs a shard's calls; waits for the server, and restores it, when it was lost.

    Args:
      recover: chunks that an empty server is restored from; None: from nothing.
      on_event: (name, **fields), as `cluster.events.EventLog.add` takes.
    """

    def __init__(
        self,
        address: str,
        shard: int,
        graph: ShardGraph,
        layout: Layout,
        recover: Callable[[int], Chunks | None],
        on_event: Callable[..., None],
        patience: Patience,
    ):
        self.address, self.shard, self.graph = address, shard, graph
        self.statistics = ShardStatistics(address)
        self._layout = layout
        self._recover, self._on_event, self._patience = recover, on_event, patience
        self._lock = threading.Lock()
        self._session: tf.compat.v1.Session | None = None
        self._generation = 0
        self._incarnation = b""
        self._closed = threading.Event()

    @property
    def incarnation(self) -> bytes:
        """Another one: the server's tables were restored meanwhile, by this trainer or another."""
        return self._incarnation

    def connect(self) -> None:
        """Waits until the server's tables are there, and makes them if nobody else does.

        Raises:
          TierError: it doesn't come, holds other tables, or can't be restored.
        """
        with self._lock:
            self._reach(self._deadline())

    def run(self, call: Call, *values: Any, seconds: float | None = None) -> Any:
        """Runs a call, again and again while the server is lost.

        Raises:
          TierError: it didn't come back in time, or refuses the call for another reason.
        """
        feeds = call.fed(*values)
        deadline = None
        doubts = 0
        while True:
            generation, session = self._generation, self._session
            if session is None:
                raise TierError(f"{self._name}: not connected")
            began = time.monotonic()
            try:
                return self._run(session, call, feeds, seconds)
            except (*_LOST, *_DOUBTFUL) as error:
                doubts += isinstance(error, _DOUBTFUL)
                if doubts > 1:
                    raise self._refused(error) from error
                deadline = deadline or self._deadline()
                self._come_back(generation, error, began, deadline)
            except tf.errors.OpError as error:
                raise self._refused(error) from error

    def restore(self, chunks: Chunks) -> None:
        """Initial rows, then the chunks, whatever the server holds."""
        values = self._to_load(chunks)
        self.run(self.graph.load, True, *values, seconds=self._patience.load)
        self.connect()

    def save_chunk(self, table: str, low: int, high: int, prefix: str) -> int:
        """See `shard.save_chunk`."""
        call = self.graph.save_chunk[table]
        return int(self.run(call, low, high, prefix, seconds=self._patience.load))

    def close(self) -> None:
        """Ends the session, and any waiting. The tables stay in the server."""
        self._closed.set()
        with self._lock:
            if self._session is not None:
                _end(self._session)
                self._session = None

    @property
    def _name(self) -> str:
        return f"shard {self.shard} of the sparse tier at {self.address}"

    def _deadline(self) -> float:
        return time.monotonic() + self._patience.total

    def _run(
        self, session: tf.compat.v1.Session, call: Call, feeds: dict, seconds: float | None
    ) -> Any:
        if seconds is None:
            return session.run(call.fetches, feeds)
        options = v1.RunOptions(timeout_in_ms=int(seconds * 1000))
        return session.run(call.fetches, feeds, options=options)

    def _come_back(
        self, generation: int, error: tf.errors.OpError, began: float, deadline: float
    ) -> None:
        """Reconnects, unless another thread did since `generation`.

        The call that saw it first `began` then; until it failed, it was waiting too.
        """
        with self._lock:
            if self._closed.is_set():
                raise TierError(f"{self._name}: closed") from error
            if self._generation != generation:
                return
            told = f"{type(error).__name__}: {_reason(error)}"
            self._on_event("shard_lost", shard=self.shard, address=self.address, error=told)
            before = self._incarnation
            try:
                self._reach(deadline)
            finally:
                waited = time.monotonic() - began
                self.statistics.waited_seconds += waited
            self.statistics.reconnects += 1
            self._on_event(
                "shard_back",
                shard=self.shard,
                address=self.address,
                seconds=round(waited, 3),
                restored=before != self._incarnation,
            )

    def _reach(self, deadline: float) -> None:
        pause, longest = _BACKOFF_SECONDS
        while True:
            try:
                self._renew()
                return
            except _LOST as error:
                if time.monotonic() + pause > deadline:
                    raise self._gone(error) from error
                if self._closed.wait(pause):
                    raise TierError(f"{self._name}: closed while waiting for it") from error
                pause = min(2 * pause, longest)
            except tf.errors.OpError as error:
                raise self._refused(error) from error

    def _renew(self) -> None:
        """Another session in place of the one that there is, if it can be opened."""
        session = self._new_session()
        with contextlib.ExitStack() as unless_opened:
            unless_opened.callback(_end, session)
            self._incarnation = self._open(session)
            unless_opened.pop_all()
        if self._session is not None:
            _end(self._session)
        self._session = session
        self._generation += 1

    def _new_session(self) -> tf.compat.v1.Session:
        config = v1.ConfigProto(
            operation_timeout_in_ms=int(self._patience.call * 1000),
            device_filters=[f"/job:ps/task:{self.shard}"],  # never waits for another server
        )
        return v1.Session(f"grpc://{self.address}", graph=self.graph.graph, config=config)

    def _open(self, session: tf.compat.v1.Session) -> bytes:
        if not self._run(session, self.graph.holds, {}, None):
            values = self._to_load(self._recover(self.shard) or {})
            feeds = self.graph.load.fed(False, *values)
            self._run(session, self.graph.load, feeds, self._patience.load)
            self.statistics.restores += 1
        held, incarnation = self._run(session, self.graph.hello, {}, None)
        asked = self._layout.of_shard(self.shard)
        if held.decode() != asked:
            raise TierError(
                f"{self._name} holds other tables than this run asks for:"
                f" {difference(held.decode(), asked)}. Give the run its own servers, or restart"
                " these (they keep tables in memory only)"
            )
        return incarnation

    def _to_load(self, chunks: Chunks) -> list[Any]:
        elsewhere = {
            f"{other}-of-{self._layout.num_shards}"
            for other in range(self._layout.num_shards)
            if other != self.shard
        }
        own = [
            [p for p in chunks.get(name, ()) if p.split("/")[-2] not in elsewhere]
            for name in self._layout.tables
        ]
        return [uuid.uuid4().hex, *(np.array(prefixes, object) for prefixes in own)]

    def _gone(self, error: tf.errors.OpError) -> TierGone:
        return TierGone(
            f"{self._name} didn't answer for {self._patience.total:.0f} s"
            f" ({type(error).__name__}: {_reason(error)}). Is it running and reachable?"
        )

    def _refused(self, error: tf.errors.OpError) -> TierError:
        return TierError(f"{self._name}: {type(error).__name__}: {_reason(error)}")


def _end(session: tf.compat.v1.Session) -> None:
    """Closes a session in a thread of its own: for a lost server that takes as long as any call.

    Left to Python's garbage collector, it would stop whichever thread that strikes.
    """

    def close() -> None:
        with contextlib.suppress(tf.errors.OpError):  # a server that is gone has no session to end
            session.close()

    threading.Thread(target=close, name="sparse-tier-end").start()


def _reason(error: tf.errors.OpError) -> str:
    """The line that says what happened."""
    lines = [line.strip() for line in error.message.splitlines()]
    told = [line for line in lines if line and not _PREAMBLE.fullmatch(line)]
    return told[0] if told else "no message"
