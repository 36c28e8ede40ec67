"""Where a run keeps what (docs/contracts.md, "Directories of a run")."""

from __future__ import annotations

import dataclasses
import pathlib
import uuid


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

    def prepare(self) -> None:
        """Makes the folder and proves that it can be written. Raises `OutputError`."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.output, self.log.parent):
                probe = folder / f".{uuid.uuid4().hex}"
                probe.touch()
                probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"--output={self.output}: can't be written: {reason}") from None


def output_of(text: str) -> Layout:
    """The layout below a folder given on the command line."""
    return Layout(pathlib.Path(text).expanduser().absolute())
