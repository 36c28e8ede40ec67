"""Trials side by side, each in a process of its own.

A small model hardly gains from a second core (docs/comparing.md), while two trainings do; and what
TensorFlow keeps of a model it has trained goes away with the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from modules.training.cluster.orphans import die_with_parent
from tfx_pipeline import quiet
from tfx_pipeline.comparison import trials as trials_lib
from tfx_pipeline.comparison.finished_run import FinishedRun
from tfx_pipeline.comparison.trials import Trial
from tfx_pipeline.progress import LOGGER, Line, Lines

_PROCESSES = multiprocessing.get_context("spawn")  # TensorFlow's threads don't survive a fork
_LOOK_SECONDS = 1.0
"""How often to look whether a pre-training that others wait for is done."""


class TrialError(Exception):
    """A trial failed: which, and why."""


@dataclasses.dataclass
class _Running:
    trial: Trial
    process: Any
    reports: multiprocessing.connection.Connection
    line: Line
    failure: str | None = None


def carry_out(
    trials: Sequence[Trial], run: FinishedRun, jobs: int, log: pathlib.Path, lines: Lines
) -> None:
    """Trains what isn't finished, `jobs` at a time, in their order.

    A trial waits while another makes the pre-training that they share. Each process takes an even
    share of the cores. SIGTERM stops as Ctrl-C does: what trains is saved first.

    Args:
      log: file that the processes write their output and logs to.

    Raises:
      TrialError: one failed; the others were stopped, and the same call goes on from there.
    """
    waiting = [trial for trial in trials if not trial.finished]
    jobs = max(1, min(jobs, len(waiting)))
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    clock = _Clock(len(waiting))
    running: list[_Running] = []
    with _stopped_at_the_end(running):
        while waiting or running:
            while len(running) < jobs and (trial := _next(waiting, running)):
                waiting.remove(trial)
                running.append(_start(trial, run, threads, log, lines.open(clock.name(trial))))
            for one in _reported(running):
                if not _ended(one):
                    continue
                running.remove(one)
                if one.failure:
                    raise TrialError(f"{_name(one.trial)}: {one.failure}")
                clock.tick()


def _next(waiting: Sequence[Trial], running: Sequence[_Running]) -> Trial | None:
    """The first whose pre-training nobody is making."""
    busy = {one.trial.pretraining for one in running if not one.trial.pretrained}
    return next((trial for trial in waiting if trial.pretraining not in busy), None)


def _start(trial: Trial, run: FinishedRun, threads: int, log: pathlib.Path, line: Line) -> _Running:
    reports, its_end = _PROCESSES.Pipe(duplex=False)
    arguments = trial, run, threads, log, its_end
    process = _PROCESSES.Process(target=_train, args=arguments, name=_name(trial), daemon=True)
    process.start()
    its_end.close()
    return _Running(trial, process, reports, line)


def _reported(running: Sequence[_Running]) -> list[_Running]:
    """Those with something to read, after a wait."""
    ready = multiprocessing.connection.wait([one.reports for one in running], _LOOK_SECONDS)
    return [one for one in running if one.reports in ready]


def _ended(one: _Running) -> bool:
    """Shows its report; True once the process is gone."""
    try:
        report = one.reports.recv()
    except EOFError:
        one.process.join()
        if not one.failure and not one.trial.finished:
            code = one.process.exitcode
            one.failure = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        one.line.end("FAILED" if one.failure else "done")
        return True
    if isinstance(report, str):
        one.failure = report
    else:
        one.line.progress(*report)
    return False


@contextlib.contextmanager
def _stopped_at_the_end(running: list[_Running]) -> Iterator[None]:
    """Whatever ends the context, what still runs saves and stops."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for one in running:
            one.process.terminate()
        for one in running:
            _read_to_the_end(one)
            one.process.join()
            one.line.end("stopped")


def _read_to_the_end(one: _Running) -> None:
    """Or it might wait for ever for room in the pipe."""
    with contextlib.suppress(EOFError):
        while True:
            one.reports.recv()


class _Clock:
    """What is left, by how long it took so far."""

    def __init__(self, num_trials: int):
        self._num_trials = num_trials
        self._started, self._opened, self._done = time.monotonic(), 0, 0

    def tick(self) -> None:
        self._done += 1

    def name(self, trial: Trial) -> str:
        """Of the next trial's line."""
        self._opened += 1
        name = f"{self._opened} of {self._num_trials}: {_name(trial)}"
        if not self._done:
            return name
        seconds = (time.monotonic() - self._started) / self._done * (self._num_trials - self._done)
        return name + (f" ({seconds / 60:.0f} min left)" if seconds >= 90 else " (a minute left)")


def _name(trial: Trial) -> str:
    return f"{trial.model}, seed {trial.seed}"


# In a trial's own process --------------------------------------------------------------------


class _Reports(logging.Handler):
    """Progress, to the process that shows it."""

    def __init__(self, pipe: multiprocessing.connection.Connection):
        super().__init__(logging.INFO)
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more to show it
            self._pipe.send((record.getMessage(), getattr(record, "fraction", None)))


def _train(
    trial: Trial,
    run: FinishedRun,
    threads: int,
    log: pathlib.Path,
    pipe: multiprocessing.connection.Connection,
) -> None:
    parent = multiprocessing.parent_process()
    # Or a second call would train in the same folder beside us.
    die_with_parent(parent.pid if parent else None)
    os.setsid()  # Ctrl-C is the parent's, which then asks us to stop: asked twice, we'd not save
    with quiet.redirected(log):
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            for gpu in tf.config.list_physical_devices("GPU"):
                tf.config.experimental.set_memory_growth(gpu, True)  # it is the others' too
            logging.getLogger(LOGGER).addHandler(_Reports(pipe))
            trials_lib.carry_out(trial, run)
        except KeyboardInterrupt:
            pass  # told to stop, it has saved
        except BaseException as error:
            logging.exception("%s", _name(trial))
            pipe.send(quiet.reason(error))
