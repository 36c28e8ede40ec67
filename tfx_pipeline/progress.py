"""Console lines for what takes long: one each with its state and time, live while it runs.

A pipeline's nodes get theirs by the log: TFX's runner says when a node starts, is cached and
finishes, and long steps of ours report to the logger `progress`, with the fraction done as `extra`:

    logging.getLogger("progress").info("step %d", 3, extra={"fraction": 0.3})
"""

from __future__ import annotations

import logging
import time
from typing import Literal

import rich.console
import rich.progress

from tfx_pipeline.quiet import interrupted

LOGGER = "progress"
_STARTS = "Component %s is running."
_ENDS = "Component %s is finished."
_CACHED = "A cached execution %d is used."
_PLAIN_SECONDS = 20.0
"""Without a terminal to redraw, a progress line at most this often."""

State = Literal["done", "cached", "stopped", "FAILED"]
_STYLES: dict[State, str] = {
    "done": "green",
    "cached": "cyan",
    "stopped": "yellow",
    "FAILED": "red",
}


class Lines:
    """The console's lines, any number of them open at once. Use it as a context."""

    def __init__(self, console: rich.console.Console):
        self._console = console
        self._live = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Lines:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def open(self, name: str) -> Line:
        return Line(name, self._console, self._live)


class Line:
    """One of them, from its start to its end."""

    def __init__(self, name: str, console: rich.console.Console, live: rich.progress.Progress):
        self._name, self._console, self._live = name, console, live
        self._started = self._last_plain = time.monotonic()
        self._task = live.add_task(name, total=None)

    def progress(self, message: str, fraction: float | None) -> None:
        """Shows what it came to; `fraction` of 1, None if nobody knows."""
        total = None if fraction is None else 1.0
        self._live.update(
            self._task, description=f"{self._name}: {message}", total=total, completed=fraction or 0
        )
        now = time.monotonic()
        if self._live.disable and now - self._last_plain > _PLAIN_SECONDS:
            self._last_plain = now
            self._console.print(f"    {self._name}: {message}", markup=False)

    def end(self, state: State) -> None:
        seconds = time.monotonic() - self._started
        self._live.remove_task(self._task)
        self._console.print(f"  {self._name:<22} [{_STYLES[state]}]{state:<7}[/] {seconds:7.1f} s")


class NodeLines(logging.Handler):
    """A log handler that opens and ends a line a node. Use it as a context around the run."""

    def __init__(self, console: rich.console.Console):
        super().__init__(logging.INFO)
        self._lines = Lines(console)
        self._line: Line | None = None
        self._state: State = "done"

    def __enter__(self) -> NodeLines:
        self._lines.__enter__()
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, kind, error, stack) -> None:
        logging.getLogger().removeHandler(self)
        self._end(_state_after(error) or self._state)
        self._lines.__exit__()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == LOGGER:
            if self._line:
                self._line.progress(record.getMessage(), getattr(record, "fraction", None))
        elif record.msg == _STARTS:
            self.start(str(record.args[0]))
        elif record.msg == _CACHED:
            self._state = "cached"
        elif record.msg == _ENDS:
            self._end(self._state)

    def start(self, node: str) -> None:
        """Opens a line; the runner's own nodes open theirs by themselves."""
        self._end(self._state)
        self._line, self._state = self._lines.open(node), "done"

    def _end(self, state: State) -> None:
        if self._line:
            self._line.end(state)
            self._line = None


def _state_after(error: BaseException | None) -> State | None:
    if error is None:
        return None
    return "stopped" if interrupted(error) else "FAILED"
