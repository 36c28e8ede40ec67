"""Who runs when, and with whom: requests merge with what is queued already, without waiting."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import grpc

from serving import errors
from serving.server.batching import Parameters

Process = Callable[[Any, Sequence[Any]], Iterable[Any]]

BATCH_ROWS = tuple(2**i for i in range(13))
"""Upper bounds of the rows that batches are counted by: 1 to 4,096."""


def expired() -> errors.ServingError:
    """DEADLINE_EXCEEDED, before anything was done."""
    return errors.ServingError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the request could run"
    )


@dataclasses.dataclass(eq=False)
class _Task:
    """A request between arrival and answer; one thread waits for it."""

    group: Hashable
    request: Any
    rows: int
    deadline: float
    wake: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    full: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    leads: bool = False
    room: int = 0
    answer: Any = None
    error: Exception | None = None


class BatchScheduler:
    """Leader and followers instead of batch threads: requests run in their own threads.

    A request that finds a free slot leads: it runs at once, with the queued requests of its group.
    The others queue and sleep. A leader that is done wakes the oldest of the queue to lead in its
    slot, then its followers with their answers. So a lone client never pays for a thread switch,
    and under load each request costs one wake-up and a share of a run.

    Attributes:
      queued_rows: rows of the requests that wait.
      batches: how many ran of each size: up to BATCH_ROWS, and above the last of it.
      batched_rows: rows of all of them.
    """

    def __init__(self, parameters: Parameters, process: Process):
        """
        Args:
          parameters: sizes and limits.
          process: `(group, requests) -> answers`, for requests of one group.
        """
        self._max_rows = parameters.max_batch_size
        self._max_queued = parameters.max_batch_size * parameters.max_enqueued_batches
        self._timeout = parameters.batch_timeout_micros / 1e6
        self._process = process
        self._lock = threading.Lock()
        self._free = parameters.num_batch_threads
        self._queue: collections.deque[_Task] = collections.deque()
        self.queued_rows = 0
        self.batches = [0] * (len(BATCH_ROWS) + 1)
        self.batched_rows = 0
        self._gathering: dict[Hashable, _Task] = {}  # leaders waiting for company, by group

    def run(self, group: Hashable, request: object, rows: int, deadline: float = math.inf) -> Any:
        """One request's answer.

        Args:
          group: requests of equal groups may run together.
          rows: the request's share of `max_batch_size`. One larger than that runs alone.
          deadline: a `time.monotonic()` moment; a request that still waits then is dropped.

        Raises:
          errors.ServingError: RESOURCE_EXHAUSTED the queue is full, DEADLINE_EXCEEDED, or what
            `process` raised for this very request.
        """
        task = _Task(group, request, rows, deadline)
        with self._lock:
            if self._free and group not in self._gathering:
                self._free -= 1
                self._let_lead(task)
            else:
                self._enqueue(task)
        if not task.leads:
            self._wait(task)
        if task.leads:
            self._lead(task)
        if task.error is not None:
            try:
                raise task.error
            finally:
                task.error = None  # its traceback leads back here: the request would outlive this
        return task.answer

    def _enqueue(self, task: _Task) -> None:
        if self._queue and self.queued_rows + task.rows > self._max_queued:
            raise errors.ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the batching queue is full: {self.queued_rows} rows wait already, at most"
                f" {self._max_queued} may (max_enqueued_batches * max_batch_size)",
            )
        task.wake.acquire()
        self._queue.append(task)
        self.queued_rows += task.rows
        leader = self._gathering.get(task.group)
        if leader is not None:
            leader.room -= task.rows
            if leader.room <= 0 and leader.full.locked():
                leader.full.release()

    def _remove(self, task: _Task) -> None:
        self._queue.remove(task)
        self.queued_rows -= task.rows

    def _wait(self, task: _Task) -> None:
        """Until there is an answer, it is the task's turn to lead, or its deadline."""
        if _acquire(task.wake, task.deadline):
            return
        with self._lock:
            if task in self._queue:
                self._remove(task)
            if not task.leads:  # else its slot must still be used and handed on
                task.error = expired()

    def _let_lead(self, leader: _Task) -> None:
        """With a timeout it waits for company first, unless that is queued already."""
        leader.leads = True
        if not self._timeout:
            return
        queued = sum(task.rows for task in self._queue if task.group == leader.group)
        leader.room = self._max_rows - leader.rows - queued
        if leader.room > 0:
            leader.full.acquire()
            self._gathering[leader.group] = leader

    def _lead(self, leader: _Task) -> None:
        batch = [leader]
        try:
            if self._gathering.get(leader.group) is leader:
                self._gather(leader)
            if self._queue:
                batch += self._followers(leader)
            self._answer(batch)
        finally:
            with self._lock:
                self._free += 1
                self._count(batch)
                if self._queue:
                    self._promote()
            for task in batch[1:]:
                task.wake.release()

    def _count(self, batch: Sequence[_Task]) -> None:
        rows = sum(task.rows for task in batch)
        self.batches[bisect.bisect_left(BATCH_ROWS, rows)] += 1
        self.batched_rows += rows

    def _gather(self, leader: _Task) -> None:
        _acquire(leader.full, min(leader.deadline, time.monotonic() + self._timeout))
        with self._lock:
            del self._gathering[leader.group]

    def _followers(self, leader: _Task) -> list[_Task]:
        """Takes what fits of the leader's group out of the queue, oldest first."""
        with self._lock:
            self._drop_expired()
            room, taken = self._max_rows - leader.rows, []
            for task in self._queue:
                if task.group == leader.group:
                    room -= task.rows
                    if room < 0:
                        break
                    taken.append(task)
            for task in taken:
                self._remove(task)
            self._promote()
        return taken

    def _promote(self) -> None:
        """Lets the oldest of the queue lead in the free slots."""
        self._drop_expired()
        while self._free:
            ready = (task for task in self._queue if task.group not in self._gathering)
            leader = next(ready, None)
            if leader is None:
                return
            self._remove(leader)
            self._free -= 1
            self._let_lead(leader)
            leader.wake.release()

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for task in [task for task in self._queue if task.deadline <= now]:
            self._remove(task)
            task.error = expired()
            task.wake.release()

    def _answer(self, batch: Sequence[_Task]) -> None:
        try:
            answers = self._process(batch[0].group, [task.request for task in batch])
            for task, answer in zip(batch, answers, strict=True):
                task.answer = answer
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for task in batch:  # one bad request doesn't fail its neighbours
                if task.error is None:
                    self._answer([task])


def _acquire(lock: threading.Lock, deadline: float) -> bool:
    """Whether it could be acquired before `deadline`, a `time.monotonic()` moment."""
    if deadline == math.inf:
        return lock.acquire()
    seconds = min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)
    return lock.acquire(timeout=seconds)
