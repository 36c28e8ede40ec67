"""Keeps the console for us: everything TFX, Beam and TensorFlow say goes to a log file."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import re
import sys
import types
import warnings
from collections.abc import Iterator
from typing import IO

import absl.logging
import rich.console

_STACKS = ("Traceback (most recent call last):", "in user code:")
_SAID = re.compile(r"^\s*[\w.]+(?:Error|Exception): (.*?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_WIDTH = 400


def width_for(file: IO[str]) -> int | None:
    """Columns for a console: a terminal's own, or what COLUMNS says. Elsewhere (CI, a pipe, a file)
    rich would take 80, which breaks paths and cuts numbers in tables."""
    return None if file.isatty() or "COLUMNS" in os.environ else 200


@contextlib.contextmanager
def redirected(log_path: pathlib.Path) -> Iterator[rich.console.Console]:
    """Sends this process's output (C++'s and subprocesses' too) and its logs to `log_path`.

    Yields the console on the real standard output. An exception that leaves the context puts
    its stack into the log; if nobody catches it, the user sees one message instead.

    Raises:
      OSError: `log_path` can't be written.
    """
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    stdout = os.fdopen(kept[1], "w", encoding="utf-8", closefd=False)
    console = rich.console.Console(
        file=stdout, width=width_for(stdout), highlight=False, soft_wrap=True
    )
    for descriptor in kept:
        os.dup2(log, descriptor)
    os.close(log)
    warnings.simplefilter("ignore")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s",
        force=True,
    )
    absl.logging.set_verbosity(absl.logging.INFO)
    sys.excepthook = functools.partial(_one_message, log_path)
    sys.unraisablehook = _log_unraisable
    try:
        yield console
    except BaseException:
        logging.exception("The command failed")
        raise
    finally:
        for stream in (stdout, sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, original in kept.items():
            os.dup2(original, descriptor)
            os.close(original)


def reason(error: BaseException) -> str:
    """What an error says, without the stacks that Beam and Keras copy into their messages."""
    text = str(error).strip()
    if any(mark in text for mark in _STACKS):
        said = _SAID.findall(text)
        text = said[-1] if said else text
    text = re.sub(r" \[while running .*?\]", "", text).strip()
    lines = [line if len(line) <= _WIDTH else line[:_WIDTH] + " …" for line in text.split("\n")]
    return "\n".join(lines) or type(error).__name__


def _one_message(
    log_path: pathlib.Path,
    kind: type[BaseException],
    error: BaseException,
    stack: types.TracebackType | None,
) -> None:
    if interrupted(error):
        message = "Stopped. The same command goes on from the last finished node."
    else:
        message = f"error: {reason(error)}\nThe whole story is in {log_path}"
    print(message, file=sys.stderr)


def interrupted(error: BaseException | None) -> bool:
    """Whether it was Ctrl-C; Beam wraps what it hits in an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        if str(error).startswith(KeyboardInterrupt.__name__):
            return True
        error = error.__cause__ or error.__context__
    return error is not None


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    # TensorFlow's destructors fail when they run after the interpreter has been taken down.
    if not sys.is_finalizing():
        logging.error("%s in %r", unraisable.exc_value, unraisable.object)
