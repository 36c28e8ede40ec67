"""Tasks added to a version while it serves: weights from a folder, fed to one of its signatures.

The encoder runs once for all of them. What clients see is a signature that takes `examples` and
answers under the tasks' names; it changes as files come and go.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from google.protobuf import message

from serving import errors
from serving.server import contract, native_tensor, task_bundle
from serving.server.contract import EXAMPLES
from serving.server.task_bundle import BundleError, TaskBundle

FOLDER = "tasks"
"""Beside a model's versions. In it, each backbone's tasks are in a folder of its name: several
versions may be served at once, each with its own."""


class Run(Protocol):
    """Runs the model's own signature with weights that are tensors already."""

    def __call__(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        deadline: float,
        held: native_tensor.Held,
    ) -> dict[str, np.ndarray]: ...


class AddedTasks:
    """The tasks of a folder that were trained on this very version. Thread-safe.

    Attributes:
      name: the signature's.
      refused: files that aren't served.
    """

    def __init__(
        self,
        declared: contract.AddedTasks,
        signature: message.Message,
        folder: pathlib.Path,
        run: Run,
    ):
        """
        Args:
          declared: what the model says of the tasks it takes.
          signature: the model's own, which takes `examples` and the weights.
          folder: holds a file a task; needn't be there.
        """
        self.name = declared.signature
        self.refused = 0
        self._declared = declared
        self._own = signature
        self._inputs = {k: v for k, v in signature.inputs.items() if k != EXAMPLES}
        self._folder = folder
        self._run = run
        self._files: dict[pathlib.Path, _File] = {}
        self._complaint = ""
        self._banks: tuple[_Bank, ...] = (self._bank_of([]),)

    @property
    def signature(self) -> message.Message:
        """As clients see it now: `examples` -> an output a task, and what else the model tells."""
        return self._banks[0].signature

    @property
    def tasks(self) -> Collection[str]:
        return self._banks[0].places.keys()

    def poll(self) -> None:
        """Looks at the folder; answers what is in it from now on. Called by one thread at a time.

        A file that can't be served is one error in the log, and read again when it changes; what
        it held before goes on being answered. So does everything while the folder can't be read,
        or there isn't the memory for what is in it.
        """
        try:
            found = _stamps(self._folder)
            if found != {path: file.stamp for path, file in self._files.items()}:
                self._take_over(found)
            self._complaint = ""
        except (OSError, MemoryError) as error:
            complaint = f"{type(error).__name__}: {error}"
            if complaint != self._complaint:
                self._complaint = complaint
                logging.error("added tasks stay as they are: %s", complaint)

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], deadline: float
    ) -> dict[str, np.ndarray]:
        """Answers a request to `signature`.

        Args:
          inputs: `examples`.
          outputs: of `signature`.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, an output is none of `signature`'s; or as the
            model's own signature does.
        """
        bank = next((bank for bank in self._banks if bank.has(outputs)), None)
        if bank is None:
            there = ", ".join(sorted(self.signature.outputs))
            raise errors.invalid(f"no added tasks {', '.join(outputs)}; the outputs are: {there}")
        answer = self._run(self.name, inputs, sorted(self._own.outputs), deadline, bank.held)
        return {name: bank.column(name, answer) for name in outputs}

    def _take_over(self, found: Mapping[pathlib.Path, tuple]) -> None:
        """All of it or, if anything is raised, nothing: the next look then tries again."""
        known = self._files
        files = {
            path: known[path]
            if path in known and known[path].stamp == stamp
            else self._read(path, stamp)
            for path, stamp in sorted(found.items())
        }
        tasks: dict[str, TaskBundle] = {}
        refused = 0
        for path, (_, bundle, is_read) in files.items():
            if bundle is not None and bundle.name in tasks:
                logging.error("%s isn't served: another file has task %r", path, bundle.name)
                is_read = False
            elif bundle is not None:
                tasks[bundle.name] = bundle
            refused += not is_read
        bank = self._bank_of(list(tasks.values()))
        # Requests that read the signature just before ask for what the bank before answers.
        self._files, self.refused, self._banks = files, refused, (bank, self._banks[0])
        logging.info("%s: added tasks: %s", self._folder, ", ".join(tasks) or "none")

    def _read(self, path: pathlib.Path, stamp: tuple) -> _File:
        try:
            bundle = task_bundle.read(path, self._declared, self._inputs)
            if bundle.name in self._own.outputs:
                raise BundleError(f"{bundle.name!r} is an output of the model's own")
        except BundleError as error:
            logging.error("%s isn't served: %s", path, error)
            before = self._files.get(path)
            return _File(stamp, before.bundle if before else None, is_read=False)
        return _File(stamp, bundle, is_read=True)

    def _bank_of(self, bundles: list[TaskBundle]) -> _Bank:
        signature = type(self._own)()
        signature.CopyFrom(self._own)
        for name in self._inputs:
            del signature.inputs[name]
        places = {}
        for place, bundle in enumerate(bundles):
            output = self._declared.outputs[bundle.per]
            places[bundle.name] = (output, place)
            signature.outputs[bundle.name].CopyFrom(self._own.outputs[output])
            del signature.outputs[bundle.name].tensor_shape.dim[-1]
        for output in set(self._declared.outputs.values()):
            del signature.outputs[output]
        held = native_tensor.Held(task_bundle.stacked(bundles, self._inputs))
        return _Bank(signature, places, held)


class _File(NamedTuple):
    """bundle: what it holds, or if that can't be served (not `is_read`), the last that could."""

    stamp: tuple
    bundle: TaskBundle | None
    is_read: bool


class _Bank:
    """Tasks side by side: `places` says of which output, and where on its last axis, each is."""

    def __init__(
        self,
        signature: message.Message,
        places: Mapping[str, tuple[str, int]],
        held: native_tensor.Held,
    ):
        self.signature = signature
        self.places = places
        self.held = held

    def has(self, outputs: Sequence[str]) -> bool:
        return all(name in self.signature.outputs for name in outputs)

    def column(self, name: str, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        if name not in self.places:
            return answer[name]
        output, place = self.places[name]
        return answer[output][..., place]


def _stamps(folder: pathlib.Path) -> dict[pathlib.Path, tuple]:
    """What changes when a file does, by file. Raises OSError if the folder can't be read."""
    stamps: dict[pathlib.Path, tuple] = {}
    if not folder.exists():
        return stamps
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # Gone since it was listed.
            if path.suffix == task_bundle.SUFFIX:
                stat = path.stat()
                stamps[path] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return stamps
