"""The report of a run: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jinja2
import yaml

from data.spec import Spec
from modules.metrics.results import CANDIDATE, OVERALL, Evaluation
from modules.training.incidents import Incidents
from tfx_pipeline.report import plots
from tfx_pipeline.report.history import History
from tfx_pipeline.report.summary import columns_of, number, others_text, summarize

_HERE = pathlib.Path(__file__).parent
_SAID = {
    "mcp": "masked channels",
    "bag": "decoded from H",
    "next": "next event",
    "aap": "AAP (attributes)",
    "mip": "MIP (items)",
    "map": "MAP (attributes)",
    "sp": "SP (segments)",
    "train": "training",
    "val": "evaluation users",
    "lambda": "weights of tasks",
    "auc": "AUC",
    "metric": "accuracy or error",
}
"""What parts of a value's name in `history.jsonl` mean, where they don't say it themselves."""
_OF_TASKS = {"train", "val"}


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """A node of the pipeline in this run."""

    name: str
    state: str
    """Such as `done` or `cached`."""
    seconds: float


def write_report(
    path: pathlib.Path,
    spec: Spec,
    evaluation: Evaluation,
    *,
    ingestion: Mapping[str, object] | None = None,
    nodes: Sequence[NodeTime] = (),
    histories: Sequence[History] = (),
    incidents: Mapping[str, Incidents] | None = None,
) -> None:
    """Writes the report.

    Args:
      path: the HTML file.
      spec: of the run.
      evaluation: of `modules.metrics.results.load_metrics`.
      ingestion: the summary of ingestion (`ingestion.json`), counts in nested groups.
      nodes: the pipeline's nodes in their order.
      histories: of the training phases (`read_history`), in their order.
      incidents: of the training phases (`read_incidents`), by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.globals |= {"columns_of": columns_of, "others_text": others_text}
    in_slices = {s: summarize(evaluation, spec, s) for s in evaluation.slices}
    page = environment.get_template("report.html.jinja").render(
        spec=spec,
        spec_yaml=yaml.safe_dump(
            spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
        ),
        evaluation=evaluation,
        tasks=[(s.task.name, s) for s in in_slices[OVERALL]],
        slices_of_tasks=[
            (task.name, [(slice_, found[i]) for slice_, found in in_slices.items()])
            for i, task in enumerate(spec.tasks)
        ],
        made=datetime.datetime.now(datetime.timezone.utc),
        task_figures=[
            (task.name, list(_task_figures(evaluation, task.name))) for task in spec.tasks
        ],
        predicts_channels=any(n.endswith("/metric") for h in histories for n in h.curves),
        training_figures=[(h.phase, list(_training_figures(h))) for h in histories],
        lifecycles=[
            (f"{h.phase}: {table}", epochs)
            for h in histories
            for table, epochs in h.lifecycles.items()
        ],
        incidents=[(phase, i) for phase, i in (incidents or {}).items() if i.incidents],
        ingestion=list(_flat(ingestion or {})),
        nodes=nodes,
        total_seconds=sum(node.seconds for node in nodes),
        node_figure=plots.durations([(n.name, n.seconds) for n in nodes]) if nodes else "",
    )
    path.write_text(page, encoding="utf-8")


def _task_figures(evaluation: Evaluation, task: str) -> Iterator[str]:
    if (CANDIDATE, task) not in evaluation.curves:
        return
    yield plots.roc(evaluation, task)
    yield plots.calibration(evaluation, task)
    for metric in ("auc", "gauc"):
        values = [evaluation.value(task, metric, slice_=s) for s in evaluation.slices]
        if len(values) > 1 and any(value == value for value in values):
            yield plots.by_slice(evaluation, task, metric)


def _training_figures(history: History) -> Iterator[str]:
    losses = {name: name for name in ("loss", "epoch loss") if name in history.curves}
    if losses:
        yield plots.training(history, losses, "loss (nats)", f"{history.phase}: loss")
    for family, labels in _families(history.curves).items():
        said = [_SAID.get(part, part) for part in family]
        names = list(labels)
        for start in range(0, len(names), plots.DISTINCT_LINES):
            chosen = {name: labels[name] for name in names[start : start + plots.DISTINCT_LINES]}
            title = f"{history.phase}: {', '.join(said)}"
            yield plots.training(history, chosen, said[-1], title)
    if history.expert_load:
        for layer in range(len(history.expert_load[0])):
            yield plots.expert_load(history, layer)


def _families(names: Iterable[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """Values that share plots, and what each is called there.

    `val/<task>/auc` and `mcp/<channel's feature>/loss` by their first and last part,
    `lambda/<task>` all together.
    """
    families: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        if "/" not in name:
            continue
        first, *middle, last = name.split("/")
        if first == "lambda":
            families.setdefault((first,), {})[name] = last
        else:
            of = "/".join(middle)
            label = of if first in _OF_TASKS else of.removeprefix("sequence_")
            families.setdefault((first, last), {})[name] = label
    return families


def _flat(group: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested groups as (path, text)."""
    for name, value in group.items():
        path = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path} › ")
        elif isinstance(value, float):
            yield path, f"{value:.4g}"
        elif isinstance(value, int):
            yield path, f"{value:,}"
        elif value is not None:
            yield path, str(value)
