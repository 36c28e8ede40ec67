"""A file that lines are appended to, whatever the disk does."""

from __future__ import annotations

import pathlib
import threading


class Lines:
    """Appends lines, from any thread. A full disk delays them; it neither loses them nor stops us.

    Lines that wait are written with the next one, or by `flush`.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._unwritten: list[str] = []
        self._writing = threading.Lock()

    def add(self, line: str) -> None:
        with self._writing:
            self._unwritten.append(line)
            self._flush()

    def flush(self) -> None:
        """Writes what couldn't be written before."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        if not self._unwritten:
            return
        text = "".join(line + "\n" for line in self._unwritten)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError:
            self._cut(size)
        else:
            self._unwritten.clear()

    def _cut(self, size: int) -> None:
        # Half a line must not stand before its second attempt.
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(size)
