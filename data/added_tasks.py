"""Tasks that are added to a run's model once it is trained: their file, checked against the run."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import pydantic
import yaml

from data.spec import Phase, Spec, SpecError, Task, parse_spec
from data.strict import InvalidError, Strict, validated

OUTPUTS = {"impression": "impression", "user": "user"}
"""Kind of task -> the output of a model's signature that answers all added tasks of this kind."""


class AddedTasks(Strict):
    """Tasks as in a spec, and how each of them is trained."""

    tasks: Annotated[tuple[Task, ...], pydantic.Field(min_length=1)]
    bottleneck_dim: Annotated[int, pydantic.Field(ge=1, le=256)] = 8
    """d of each task's side network."""
    epochs: Annotated[int, pydantic.Field(ge=1)] = 5
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 256
    """Targets a step."""
    learning_rate: Annotated[float, pydantic.Field(gt=0.0)] = 3e-3
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.01
    seed: Annotated[int, pydantic.Field(ge=0)] = 0

    @property
    def phase(self) -> Phase:
        return Phase(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )


def load_added_tasks(path: str | pathlib.Path) -> AddedTasks:
    """Reads a YAML file of `AddedTasks`. Raises `SpecError`: all that is wrong with it."""
    try:
        return validated(AddedTasks, yaml.safe_load(pathlib.Path(path).read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: can't be read: {error}") from None
    except InvalidError as error:
        raise SpecError(f"{path}: not a file of added tasks:\n{error}") from None


def with_added(spec: Spec, added: AddedTasks) -> Spec:
    """A run's spec with these tasks instead of its own: what makes the instances they learn from.

    Raises:
      SpecError: one has the name of a task of the run or of an output, more than two classes, a
        ranking loss, or a label that the run's encoder is told; or one per impression is added to
        a run that learns from its domain alone.
    """
    own = {task.name for task in spec.tasks}
    for task in added.tasks:
        if task.name in own:
            raise SpecError(f"tasks: {task.name!r} is a task of the run itself: give another name")
        if task.name in OUTPUTS.values():
            raise SpecError(f"tasks: {task.name!r} is a reserved name")
        if task.type == "multiclass":
            raise SpecError(f"tasks: {task.name!r}: added tasks are binary or regression")
        if task.loss != "pointwise":
            raise SpecError(
                f"tasks: {task.name!r}: added tasks are trained pointwise: leave out 'loss'"
            )
        seen = set(spec.encoder_context) - set(spec.context_for(task))
        for channel in sorted(seen, key=lambda channel: channel.name):
            raise SpecError(
                f"tasks: {task.name!r} mustn't see context channel {channel.name!r}, which the"
                " run's encoder reads: name it in 'exclude' of one of the run's own tasks, or"
                " keep all context out of H by 'model.context: heads', and run again"
            )
    ranks = any(task.per == "impression" for task in added.tasks)
    if ranks and spec.domain is not None and spec.domain.train_on == "domain":
        raise SpecError(
            "domain.train_on: the run learns from its domain alone, which added tasks per"
            " impression can't"
        )
    raw: dict[str, Any] = spec.model_dump(mode="json")
    raw["tasks"] = [task.model_dump(mode="json") for task in added.tasks]
    raw["training"] = {"pretrain": {"epochs": 0}}  # the run's says nothing of these tasks
    raw["model"]["added_tasks"] = False  # nothing is added to what is added
    raw["knowledge"] = None
    if not ranks:
        raw["domain"] = None  # it is of targets per impression
    return parse_spec(raw)
