"""Where a run keeps what (docs/contracts.md, "Directories of a run")."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import uuid
from collections.abc import Iterator


class OutputError(OSError):
    """A run's folder can't be used; says which and why."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The paths below one run's output folder."""

    output: pathlib.Path

    @property
    def spec(self) -> pathlib.Path:
        """What the newest run was asked for, as JSON."""
        return self.output / "spec.json"

    @property
    def data(self) -> pathlib.Path:
        """Simulated events."""
        return self.output / "data"

    @property
    def artifacts(self) -> pathlib.Path:
        return self.output / "pipeline"

    @property
    def training(self) -> pathlib.Path:
        """Input and checkpoints of Trainers that haven't finished, so that they can go on."""
        return self.output / "training"

    @property
    def metadata(self) -> pathlib.Path:
        return self.output / "metadata.sqlite"

    @property
    def dead_letters(self) -> pathlib.Path:
        return self.output / "dead_letters"

    @property
    def serving(self) -> pathlib.Path:
        """One folder a model, in it one a version."""
        return self.output / "serving"

    @property
    def embeddings(self) -> pathlib.Path:
        return self.output / "embeddings"

    @property
    def knowledge(self) -> pathlib.Path:
        """A store of `serving.knowledge`."""
        return self.output / "knowledge"

    @property
    def report(self) -> pathlib.Path:
        return self.output / "report.html"

    @property
    def comparison(self) -> pathlib.Path:
        """One folder a model that was compared, in it one a training."""
        return self.output / "comparison"

    @property
    def log(self) -> pathlib.Path:
        return self.output / "logs" / "run.log"

    def require_for(self, name: str, data: str) -> None:
        """Refuses a folder that a run of spec `name` must not write to.

        It may be new, or a run's of the same name, however early that was killed. A folder of
        other things is refused, unless `data`, the folder of events, is in it.

        Raises:
          OutputError: it is the run of another spec, or no run's; or it can't be read.
        """
        kept = self._name()
        if kept not in (None, name):
            raise OutputError(
                f"--output: {self.output} is the run of {kept!r}; give {name!r} a folder of its own"
            )
        if data and pathlib.Path(data).resolve().is_relative_to(self.output.resolve()):
            return
        try:
            foreign = kept is None and self._is_foreign()
        except OSError as error:
            raise self._unusable("read", error) from None
        if foreign:
            raise OutputError(
                f"--output: {self.output} holds files, and none of a run; give a new folder"
            )

    def prepare(self) -> None:
        """Makes the folder and proves that it can be written. Raises `OutputError`."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.output, self.log.parent):
                probe = folder / f".{uuid.uuid4().hex}"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise self._unusable("written", error) from None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """One run's at a time, by a lock (flock) that ends with its process, however that ends.

        Raises:
          OutputError: another one has it, as where yesterday's run still goes on; or it can't be
            locked.
        """
        with contextlib.ExitStack() as held:
            try:
                file = held.enter_context((self.output / ".lock").open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"--output={self.output}: another run writes here; wait for it, or stop it"
                ) from None
            except OSError as error:
                raise self._unusable("locked", error) from None
            yield

    def _name(self) -> str | None:
        """The spec's of the run that is here; None if there is none, or it hadn't written that."""
        try:
            return json.loads(self.spec.read_text())["name"]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _is_foreign(self) -> bool:
        if not self.output.is_dir() or self.metadata.exists() or self.artifacts.exists():
            return False
        # What a run makes first, in this order.
        early = {self.log.parent, self.spec, self.data, self.output / "lost+found"}
        return any(p not in early and not p.name.startswith(".") for p in self.output.iterdir())

    def _unusable(self, how: str, error: OSError) -> OutputError:
        return OutputError(
            f"--output={self.output}: can't be {how}: {error.strerror or str(error)}"
        )


def output_of(text: str) -> Layout:
    """The layout below a folder given on the command line."""
    return Layout(pathlib.Path(text).expanduser().absolute())
