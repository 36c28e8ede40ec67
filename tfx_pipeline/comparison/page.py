"""The page of finished trials, with everything its figures depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data.spec import Spec, Task
from modules.metrics.activity import bucket_names, bucket_of
from tfx_pipeline.comparison import label_frequency, tables, trials
from tfx_pipeline.comparison.finished_run import FinishedRun
from tfx_pipeline.comparison.provenance import provenance
from tfx_pipeline.comparison.trials import Outcome, Trial
from tfx_pipeline.comparison.variants import Variant
from tfx_pipeline.report import plots
from tfx_pipeline.report.comparison import Comparison


def page_of(
    every: Sequence[Trial],
    variants: Sequence[Variant],
    reference: str,
    run: FinishedRun,
    command: str,
) -> Comparison:
    """Args:
    every: finished ones, each model's in the order of the tables.
    reference: the model that others are tested against.
    command: that made the page.
    """
    models = list(dict.fromkeys(trial.model for trial in every))
    outcomes = {
        model: [trials.outcome_of(trial) for trial in every if trial.model == model]
        for model in models
    }
    scores = _scores(every, run)
    edges = run.spec.evaluation.activity_edges
    by_activity = tables.activity_table(scores_by_activity(every, edges), reference)
    return Comparison(
        f"{run.spec.name}: {len(models)} models side by side",
        [
            ("command", command),
            ("models", "; ".join(map(_described, variants))),
            ("seeds", ", ".join(map(str, dict.fromkeys(trial.seed for trial in every)))),
            ("run", f"{run.spec.name}, spec {run.spec.fingerprint()}"),
            ("evaluated on", _evaluated(scores)),
            ("budget", tables.budget(outcomes)),
            *_made([one for of in outcomes.values() for one in of]),
        ],
        [
            *tables.quality_tables(scores, reference),
            *([by_activity] if by_activity else []),
            tables.cost_table(models, outcomes),
        ],
        _figures(scores, outcomes, every),
        tables.notes(reference),
    )


def _scores(every: Sequence[Trial], run: FinishedRun) -> tables.Scores:
    """With what is known without a model, of all tasks that any of the models has and training has
    labels of."""
    having: dict[str, tuple[Task, Trial]] = {}
    for trial in every:
        for task in trial.spec.tasks:
            if task.name not in having or task.loss == "pointwise":
                having[task.name] = task, trial
    known = label_frequency.frequencies(run.instances, _of_tasks(having, run.spec))
    having = {name: found for name, found in having.items() if name in known}
    if not having:
        return tables.Scores(every, trials.predictions_of)
    spec = _of_tasks(having, run.spec)
    asked = [_of_task(trials.predictions_of(trial), name) for name, (_, trial) in having.items()]
    answers = label_frequency.answers(pa.concat_tables(asked), known, spec)
    seeds = dict.fromkeys(trial.seed for trial in every)
    without = [Trial(label_frequency.NAME, seed, spec, every[0].folder, None) for seed in seeds]

    def predictions_of(trial: Trial) -> pa.Table:
        return answers if trial.model == label_frequency.NAME else trials.predictions_of(trial)

    return tables.Scores([*every, *without], predictions_of)


def scores_by_activity(every: Sequence[Trial], edges: Sequence[int]) -> dict[str, tables.Scores]:
    """GAUC of each bucket's users alone, where there are any."""
    bucketed = {}
    for trial in every:
        table = trials.predictions_of(trial)
        bucketed[trial.folder] = table, bucket_of(table["activity"].to_numpy(), edges)
    found = {}
    for bucket, name in enumerate(bucket_names(edges)):

        def of_bucket(trial: Trial, bucket: int = bucket) -> pa.Table:
            table, buckets = bucketed[trial.folder]
            return table.filter(buckets == bucket)

        if any((buckets == bucket).any() for _, buckets in bucketed.values()):
            found[name] = tables.Scores(every, of_bucket, ["gauc"])
    return found


def _of_tasks(having: Mapping[str, tuple[Task, Trial]], spec: Spec) -> Spec:
    return spec.model_copy(update={"tasks": tuple(task for task, _ in having.values())})


def _of_task(predictions: pa.Table, task: str) -> pa.Table:
    return predictions.filter(pc.equal(predictions["task"], task))


def _described(variant: Variant) -> str:
    changes = ", ".join(f"{key}: {value}" for key, value in variant.overrides.items())
    return f"{variant.name} ({changes})"


def _evaluated(scores: tables.Scores) -> str:
    targets = ", ".join(f"{task} {number:,}" for task, number in scores.num_targets.items())
    return f"{scores.num_users:,} users; labelled targets: {targets}"


def _made(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    now = provenance()
    dates = [outcome.date for outcome in outcomes]
    return [
        ("machine", "; ".join(sorted({_machine(outcome) for outcome in outcomes}))),
        ("trained", f"{min(dates)} to {max(dates)}"),
        ("trained at commit", ", ".join(sorted({outcome.commit for outcome in outcomes}))),
        ("page", f"{now['date']}, at commit {now['commit']}"),
    ]


def _machine(outcome: Outcome) -> str:
    threads = {0: "all cores", 1: "one thread"}.get(outcome.threads, f"{outcome.threads} threads")
    return f"{outcome.machine}, {threads} an operation"


def _figures(
    scores: tables.Scores, outcomes: Mapping[str, Sequence[Outcome]], every: Sequence[Trial]
) -> list[str]:
    """AUC against cost, and against users where that was asked: the mean's, or where there is none
    the first task's that has one."""
    for task in (tables.MEAN, *scores.tasks):
        quality = {model: scores.over_seeds(model, task, "auc") for model in outcomes}
        known = {model: found for model, found in quality.items() if found}
        if known:
            break
    else:
        return []
    label = f"AUC ({task})"
    costs = {model: [outcome.cpu_seconds for outcome in outcomes[model]] for model in known}
    figures = [plots.quality_against_cost([(m, costs[m], known[m]) for m in known], label)]
    curves = [
        (name, [(share, known[model]) for share, model in members if model in known])
        for name, members in of_less_data(every)
    ]
    if curves:
        figures.append(plots.quality_against_users(curves, label))
    return figures


def of_less_data(every: Sequence[Trial]) -> list[tuple[str, list[tuple[float, str]]]]:
    """Models that differ in `training.finetune.user_share` only, if there are: the name of the one
    with the largest share, and of each its share and name, in the order of shares."""
    alike: dict[str, dict[float, str]] = {}
    for trial in every:
        raw = trial.spec.model_dump()
        share = raw["training"]["finetune"].pop("user_share")
        del raw["training"]["seed"]
        alike.setdefault(json.dumps(raw, default=str), {})[share] = trial.model
    found = [sorted(members.items()) for members in alike.values() if len(members) > 1]
    return [(members[-1][1], members) for members in found]
