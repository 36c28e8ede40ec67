"""Who runs when and with whom. Every wait here is for a state, none for a time."""

import gc
import math
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from serving import protos
from serving.errors import ServingError
from serving.server.batch_scheduler import BATCH_ROWS, BatchScheduler
from serving.server.batching import Parameters


class Process:
    """Doubles each request; remembers the batches; holds the first one until told to go on."""

    def __init__(self, *, hold: bool = True):
        self.batches: list[list[int]] = []
        self.threads: list[int] = []
        self.started, self.go_on = threading.Event(), threading.Event()
        if not hold:
            self.go_on.set()

    def __call__(self, group, requests):
        self.batches.append(list(requests))
        self.threads.append(threading.get_ident())
        self.started.set()
        assert self.go_on.wait(60)
        if any(request < 0 for request in requests):
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"negative: {requests}")
        return [2 * request for request in requests]


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")


class Busy:
    """A scheduler whose only slot is held by request 0, until `finish`."""

    def __init__(self, **parameters):
        self.process = Process()
        self.scheduler = BatchScheduler(Parameters(num_batch_threads=1, **parameters), self.process)
        self.pool = ThreadPoolExecutor(32)
        self.first = self.pool.submit(self.scheduler.run, "a", 0, 1)
        assert self.process.started.wait(60)

    def queue(self, request, group="a", rows=1, deadline=math.inf):
        """Returns once it waits in the queue."""
        before = self.scheduler.queued_rows
        future = self.pool.submit(self.scheduler.run, group, request, rows, deadline)
        wait_for(lambda: self.scheduler.queued_rows == before + rows or future.done())
        return future

    def finish(self, futures):
        self.process.go_on.set()
        assert self.first.result(60) == 0
        return [future.result(60) for future in futures]


def test_a_lone_request_runs_at_once_in_its_own_thread():
    process = Process(hold=False)
    scheduler = BatchScheduler(Parameters(), process)
    assert [scheduler.run("a", i, 1) for i in range(3)] == [0, 2, 4]
    assert process.threads == [threading.get_ident()] * 3


def test_what_is_queued_runs_together_in_order():
    busy = Busy()
    futures = [busy.queue(i) for i in range(1, 6)]
    assert busy.finish(futures) == [2, 4, 6, 8, 10]
    assert busy.process.batches == [[0], [1, 2, 3, 4, 5]]


def test_batches_hold_one_group_and_at_most_max_batch_size_rows():
    busy = Busy(max_batch_size=4)
    queued = [(1, "a", 2), (2, "b", 1), (3, "a", 1), (4, "a", 2), (5, "b", 3), (6, "b", 1)]
    futures = [busy.queue(*one) for one in queued]
    assert busy.finish(futures) == [2, 4, 6, 8, 10, 12]
    assert busy.process.batches == [[0], [1, 3], [2, 5], [4], [6]]


def test_a_request_larger_than_a_batch_runs_alone():
    busy = Busy(max_batch_size=4)
    futures = [busy.queue(1, rows=9), busy.queue(2)]
    assert busy.finish(futures) == [2, 4]
    assert busy.process.batches == [[0], [1], [2]]


def test_batches_are_counted_by_their_rows():
    busy = Busy(max_batch_size=4)
    busy.finish([busy.queue(1, rows=2), busy.queue(2)])
    busy.scheduler.run("a", 3, 5000)
    assert busy.process.batches == [[0], [1, 2], [3]]
    counted = dict(zip((*BATCH_ROWS, math.inf), busy.scheduler.batches, strict=True))
    assert {bound: count for bound, count in counted.items() if count} == {1: 1, 4: 1, math.inf: 1}
    assert busy.scheduler.batched_rows == 1 + 3 + 5000


def test_a_full_queue_sheds_load():
    busy = Busy(max_batch_size=2, max_enqueued_batches=2)
    futures = [busy.queue(i) for i in range(1, 5)]
    with pytest.raises(ServingError, match="queue is full") as caught:
        busy.scheduler.run("a", 9, 1)
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert busy.finish(futures) == [2, 4, 6, 8]
    assert busy.scheduler.run("a", 9, 1) == 18


def test_a_request_past_its_deadline_is_dropped_from_the_queue():
    busy = Busy()
    futures = [busy.queue(1), busy.queue(2, deadline=time.monotonic() + 0.2), busy.queue(3)]
    with pytest.raises(ServingError) as caught:
        futures[1].result(60)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert busy.scheduler.queued_rows == 2
    assert busy.finish([futures[0], futures[2]]) == [2, 6]
    assert busy.process.batches == [[0], [1, 3]]


def test_a_bad_request_fails_alone():
    busy = Busy()
    good, bad, other = busy.queue(1), busy.queue(-2), busy.queue(3)
    assert busy.finish([good, other]) == [2, 6]
    with pytest.raises(ServingError, match=r"negative: \[-2\]"):
        bad.result(60)
    assert busy.process.batches == [[0], [1, -2, 3], [1], [-2], [3]]


def test_a_failed_request_is_forgotten_at_once():
    """Its error's traceback must not hold it until the next garbage collection."""

    class Request:
        """One that can be watched."""

    def process(group, requests):
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "no")

    request = Request()
    alive = weakref.ref(request)
    gc.disable()
    try:
        with pytest.raises(ServingError) as caught:
            BatchScheduler(Parameters(), process).run("a", request, 1)
        del request, caught
        assert alive() is None
    finally:
        gc.enable()


def test_with_a_timeout_a_batch_leaves_as_soon_as_it_is_full():
    process = Process(hold=False)
    parameters = Parameters(max_batch_size=4, batch_timeout_micros=10**9, num_batch_threads=1)
    scheduler = BatchScheduler(parameters, process)
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda i: scheduler.run("a", i, 1), range(8))) == list(
            range(0, 16, 2)
        )
    assert [len(batch) for batch in process.batches] == [4, 4]


def test_a_timeout_ends_the_wait_for_company():
    process = Process(hold=False)
    scheduler = BatchScheduler(Parameters(batch_timeout_micros=1000), process)
    assert scheduler.run("a", 3, 1) == 6


@pytest.mark.parametrize("timeout", [0, 200])
def test_everybody_gets_their_own_answer(timeout):
    process = Process(hold=False)
    parameters = Parameters(max_batch_size=8, batch_timeout_micros=timeout, num_batch_threads=2)
    scheduler = BatchScheduler(parameters, process)

    def ask(client):
        for i in range(100):
            request = 1000 * client + i
            answer = scheduler.run(request % 3, request, 1 + request % 4, time.monotonic() + 60)
            assert answer == 2 * request

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert sum(map(len, process.batches)) == 1600
    assert scheduler.queued_rows == 0
    assert all(len({request % 3 for request in batch}) == 1 for batch in process.batches)
    assert all(sum(1 + r % 4 for r in batch) <= 8 for batch in process.batches)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"num_batch_threads": 0}, "num_batch_threads must be at least 1"),
        ({"batch_timeout_micros": -1}, "must not be negative"),
        ({"allowed_batch_sizes": (4, 2)}, "must be positive and increase"),
        ({"allowed_batch_sizes": (2, 32)}, r"must be max_batch_size \(64\)"),
    ],
)
def test_parameters_that_make_no_sense(fields, text):
    with pytest.raises(ServingError, match=text):
        Parameters(**fields)


def test_parameters_from_tf_servings_message():
    proto = protos.BatchingParameters(allowed_batch_sizes=[8, 32])
    proto.max_batch_size.value = 32
    proto.batch_timeout_micros.value = 500
    assert Parameters.from_proto(proto) == Parameters(
        max_batch_size=32, batch_timeout_micros=500, allowed_batch_sizes=(8, 32)
    )
