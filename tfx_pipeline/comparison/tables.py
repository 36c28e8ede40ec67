"""What a comparison says: means over seeds, which differences are more than chance, and the cost.

Everything is computed here from the kept predictions, the same way for every model.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.spec import Task
from modules.metrics.resampled import LOWER_IS_BETTER, METRICS, measure, resampled
from modules.metrics.significance import RESAMPLES, draw_users, p_value
from tfx_pipeline.comparison import label_frequency
from tfx_pipeline.comparison.trials import Outcome, Trial
from tfx_pipeline.report.comparison import Cell, Table
from tfx_pipeline.report.summary import MISSING

_TITLES = {"auc": "AUC", "gauc": "GAUC", "log_loss": "Log loss (nats)", "accuracy": "Accuracy"}
_LEVELS = ((0.01, "**"), (0.05, "*"))
_OF_PROBABILITIES = frozenset({"log_loss", "accuracy"})
"""Which scores that were learned by ranking aren't."""
MEAN = "mean"


class _Targets(NamedTuple):
    """One task's labelled targets: int64 [N] numbers of users, float32 [N], float32 [N]."""

    user: np.ndarray
    label: np.ndarray
    score: np.ndarray


class Scores:
    """Every metric of every trial, and its resamples.

    Args:
      trials: each model's, in the order of the tables.
      predictions: of a trial.
      metrics: that are wanted.

    Raises:
      ValueError: two trials weren't asked about the same targets.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        predictions: Callable[[Trial], pa.Table],
        metrics: Sequence[str] = METRICS,
    ):
        self._metrics = metrics
        self.models = list(dict.fromkeys(trial.model for trial in trials))
        self.tasks = _tasks(trials)
        self.values: dict[tuple[str, int, str, str], float] = {}
        """(model, seed, task, metric); the task `mean` is over all binary ones."""
        self._resampled: dict[tuple[str, int, str, str], np.ndarray] = {}
        self.other: dict[tuple[str, int, str], float] = {}
        """(model, seed, task that isn't binary): log loss, or squared error."""
        self._seeds: dict[str, list[int]] = collections.defaultdict(list)
        known: dict[str, _Targets] = {}
        asked = [pc.unique(predictions(trial)["user_id"]) for trial in trials]
        users = pc.unique(pa.chunked_array(asked))
        users = users.take(pc.sort_indices(users))  # whatever the models' order
        self.num_users = len(users)
        counts = draw_users(len(users))
        for trial in trials:
            table = predictions(trial)
            self._seeds[trial.model].append(trial.seed)
            for task in trial.spec.tasks:
                targets = _targets_of(table, task.name, users)
                same = known.setdefault(task.name, targets)
                _require_same(trial, task.name, targets, same)
                self._add(trial, task, targets, counts)
        self.num_targets = {task: len(targets.label) for task, targets in known.items()}
        self._add_means(trials)

    def seeds(self, model: str) -> list[int]:
        return self._seeds[model]

    def over_seeds(self, model: str, task: str, metric: str) -> list[float]:
        keys = ((model, seed, task, metric) for seed in self._seeds[model])
        return [self.values[key] for key in keys if key in self.values]

    def p(self, model: str, other: str, task: str, metric: str) -> float:
        """Of the mean difference over the seeds that both have; NaN where nothing compares."""
        differences = [
            self._resampled[one] - self._resampled[two]
            for seed in self._seeds[model]
            if (one := (model, seed, task, metric)) in self._resampled
            and (two := (other, seed, task, metric)) in self._resampled
        ]
        return p_value(np.mean(differences, axis=0)) if differences else math.nan

    def _add(self, trial: Trial, task: Task, targets: _Targets, counts: np.ndarray) -> None:
        key = (trial.model, trial.seed, task.name)
        if task.type != "binary":
            self.other[key] = _other(task, targets)
            return
        values = measure(*targets, self._metrics)
        drawn = resampled(*targets, counts, self._metrics)
        for metric in self._metrics:
            if _means_something(metric, task):
                self.values[(*key, metric)] = values[metric]
                self._resampled[(*key, metric)] = drawn[metric]

    def _add_means(self, trials: Sequence[Trial]) -> None:
        """Over all tasks that have the metric, for the trials that have them all."""
        for metric in self._metrics:
            having = {task for _, _, task, name in self.values if name == metric}
            for trial in trials:
                keys = [(trial.model, trial.seed, task, metric) for task in sorted(having)]
                if len(keys) > 1 and all(key in self.values for key in keys):
                    mean = (trial.model, trial.seed, MEAN, metric)
                    self.values[mean] = float(np.mean([self.values[key] for key in keys]))
                    self._resampled[mean] = np.mean([self._resampled[key] for key in keys], axis=0)


def quality_tables(scores: Scores, reference: str) -> list[Table]:
    """One a metric: a row a model, a column a task, and their mean."""
    tables = []
    for metric in METRICS:
        tasks = [t for t in [*scores.tasks, MEAN] if _any(scores, t, metric)]
        if tasks:
            columns = [_column(scores, task, metric, reference) for task in tasks]
            rows = [
                [Cell(model), *(column[model] for column in columns)] for model in scores.models
            ]
            tables.append(Table(_title(metric), ["model", *tasks], rows))
    others = [task for task in scores.tasks if any(t == task for _, _, t in scores.other)]
    if others:
        rows = [[Cell(m), *(_other_cell(scores, m, t) for t in others)] for m in scores.models]
        note = "Log loss in nats (multiclass) or mean squared error (regression): lower is better."
        tables.append(Table("Other tasks", ["model", *others], rows, note))
    return tables


def activity_table(by_activity: Mapping[str, Scores], reference: str) -> Table | None:
    """GAUC by how many events a user has (KEEP Table 7), of the mean task, or where no model has
    them all of the first that has a GAUC; None where none has.

    Args:
      by_activity: what is known of each bucket's users alone, by its name.
    """
    every = list(by_activity.values())
    tasks = dict.fromkeys([MEAN, *(task for scores in every for task in scores.tasks)])
    task = next((t for t in tasks if any(_any(scores, t, "gauc") for scores in every)), None)
    if task is None:
        return None
    columns = [_column(scores, task, "gauc", reference) for scores in every]
    rows = [[Cell(m), *(column[m] for column in columns)] for m in every[0].models]
    of = "The mean over tasks" if task == MEAN else f"Of {task}"
    note = f"{of}; by the number of the user's events (of a split by time, of those before it)."
    return Table("GAUC by activity", ["model", *by_activity], rows, note)


def cost_table(models: Sequence[str], outcomes: Mapping[str, Sequence[Outcome]]) -> Table:
    """A row a model; steps are of one training."""
    phases = list(dict.fromkeys(p for of in outcomes.values() for one in of for p in one.steps))
    header = ["model", "parameters", "active", "tuned", "tuned, %"]
    header += [f"{phase} steps" for phase in phases]
    header += ["CPU s a training", "ms a step"]
    rows = []
    for model in models:
        first = outcomes[model][0]
        texts = [model, f"{first.total:,}", f"{first.active:,}", f"{first.tuned:,}"]
        texts.append(f"{100 * first.tuned / first.total:.1f}")
        texts += [f"{first.steps[p]:,}" if p in first.steps else MISSING for p in phases]
        texts.append(_mean_and_deviation([one.cpu_seconds for one in outcomes[model]], ".0f"))
        steps = [1000 * one.seconds_a_step for one in outcomes[model]]
        texts.append(_mean_and_deviation(steps, ".1f"))
        rows.append([Cell(text) for text in texts])
    note = (
        "Active: parameters outside tables that a token meets. Tuned: those that fine-tuning has a"
        " gradient for. CPU seconds are its process's over both phases, with the evaluations for"
        " the training curves; a step is fine-tuning's, in wall time, beside what else the machine"
        " trained."
    )
    return Table("Cost", header, rows, note)


def budget(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Whether the models had equal budgets, in steps."""
    said = []
    for phase in dict.fromkeys(p for of in outcomes.values() for one in of for p in one.steps):
        of_models: dict[str, list[str]] = collections.defaultdict(list)
        for model, of in outcomes.items():
            steps = sorted({one.steps[phase] for one in of if phase in one.steps})
            of_models[", ".join(f"{n:,}" for n in steps) or "none"].append(model)
        if len(of_models) == 1:
            said.append(f"{phase}: {next(iter(of_models))} steps each")
        else:
            differ = (f"{', '.join(m)} {steps}" for steps, m in of_models.items())
            said.append(f"{phase} steps: {'; '.join(differ)}")
    return " · ".join(said)


def notes(reference: str) -> list[str]:
    return [
        "Mean ± standard deviation over seeds; the best mean of a column stands out. Each training"
        " saw the same instances, and its SavedModel was asked about the same targets by the same"
        " code.",
        f"Stars: it differs from {reference} by more than the choice of users explains (paired"
        f" bootstrap over users, {RESAMPLES:,} resamples, the mean over seeds; * p < 0.05,"
        " ** p < 0.01; not corrected for the number of comparisons).",
        f"{label_frequency.NAME}: no model, but the share of each label among those trained on, as"
        " the answer to every target (LabelCS); none for a task that training has no label of."
        " Accuracy is at a threshold of 0.5; it and log loss are of tasks whose loss is pointwise.",
        "recall@p85: the largest recall of a threshold with a precision of at least 85% (0: no"
        " threshold is that precise).",
    ]


def _tasks(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(task.name for trial in trials for task in trial.spec.tasks))


def _targets_of(table: pa.Table, task: str, users: pa.Array) -> _Targets:
    rows = table.filter(pc.equal(table["task"], task))
    number = pc.index_in(rows["user_id"], value_set=users).to_numpy().astype(np.int64)
    return _Targets(number, rows["label"].to_numpy(), rows["score"].to_numpy())


def _require_same(trial: Trial, task: str, one: _Targets, other: _Targets) -> None:
    if not (np.array_equal(one.user, other.user) and np.array_equal(one.label, other.label)):
        raise ValueError(
            f"{trial.folder}: its evaluation targets of {task!r} aren't the other models'; remove"
            " the folder, so that it is trained again"
        )


def _means_something(metric: str, task: Task) -> bool:
    if metric == "gauc":
        return task.per == "impression" and task.group_by is not None
    return metric not in _OF_PROBABILITIES or task.loss == "pointwise"


def _other(task: Task, targets: _Targets) -> float:
    score = targets.score.astype(np.float64)
    if task.type == "multiclass":
        return float(-np.log(np.clip(score, 1e-7, 1)).mean())
    return float(np.square(score - targets.label).mean())


def _any(scores: Scores, task: str, metric: str) -> bool:
    return any(scores.over_seeds(model, task, metric) for model in scores.models)


def _column(scores: Scores, task: str, metric: str, reference: str) -> dict[str, Cell]:
    values = {model: scores.over_seeds(model, task, metric) for model in scores.models}
    means = {m: statistics.mean(v) for m, v in values.items() if v and not any(map(math.isnan, v))}
    best = (min if metric in LOWER_IS_BETTER else max)(means.values(), default=math.nan)
    cells = {}
    for model in scores.models:
        if model not in means:
            cells[model] = Cell(MISSING)
            continue
        mark = ""
        if model != reference:
            mark = _mark(scores.p(model, reference, task, metric))
        text = _mean_and_deviation(values[model], ".4f")
        cells[model] = Cell(f"{text} {mark}".rstrip(), best=means[model] == best)
    return cells


def _mark(p: float) -> str:
    return next((mark for level, mark in _LEVELS if p < level), "")


def _other_cell(scores: Scores, model: str, task: str) -> Cell:
    keys = [(model, seed, task) for seed in scores.seeds(model)]
    found = [scores.other[key] for key in keys if key in scores.other]
    return Cell(_mean_and_deviation(found, ".4f") if found else MISSING)


def _mean_and_deviation(values: Sequence[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def _title(metric: str) -> str:
    return _TITLES.get(metric, f"{metric.replace('@p', ' at precision ')}%".capitalize())
