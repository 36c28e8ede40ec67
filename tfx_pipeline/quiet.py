"""Keeps the console for us: everything TFX, Beam and TensorFlow say goes to a log file."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import sys
import traceback
import types
import warnings

import rich.console

_TRACEBACK = "Traceback (most recent call last):"


def redirect(log_path: pathlib.Path) -> rich.console.Console:
    """Sends this process's output (C++ and subprocesses too) and its logs to `log_path`.

    Meant for a command's process, for the rest of its life. An exception that reaches the
    top puts its stack into the log and one message on the console.

    Returns:
      The console on the real standard output.

    Raises:
      OSError: `log_path` can't be written.
    """
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    stderr = os.fdopen(os.dup(2), "w", encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    warnings.simplefilter("ignore")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("absl").setLevel(logging.INFO)
    sys.excepthook = _one_message(rich.console.Console(file=stderr), log_path)
    # Outside a terminal (CI, a file) rich would wrap at 80 columns and break paths.
    width = None if stdout.isatty() else 160
    return rich.console.Console(file=stdout, width=width, highlight=False, soft_wrap=True)


def reason(error: BaseException) -> str:
    """What an error says. Beam wraps errors of its workers: their own message is taken out."""
    text = str(error).strip()
    if _TRACEBACK in text:
        text = re.split(r"\n(?=\S)", text.rsplit(_TRACEBACK, 1)[1])[-1]
        text = re.sub(r"^[\w.]+: ", "", text)
    text = re.sub(r" \[while running .*?\]", "", text).strip()
    return text or type(error).__name__


def _one_message(console: rich.console.Console, log_path: pathlib.Path):
    def hook(
        kind: type[BaseException], error: BaseException, stack: types.TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            console.print("\nStopped. The same command goes on from the last finished node.")
            return
        logging.error("%s", "".join(traceback.format_exception(kind, error, stack)))
        console.print(f"error: {reason(error)}", style="red", markup=False, soft_wrap=True)
        console.print(f"The whole story is in {log_path}", markup=False, soft_wrap=True)

    return hook
