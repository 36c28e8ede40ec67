"""The page of finished trials, with everything its figures depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfx_pipeline.comparison import tables, trials
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
    scores = tables.Scores(every, trials.predictions_of)
    outcomes = {
        model: [trials.outcome_of(trial) for trial in every if trial.model == model]
        for model in scores.models
    }
    return Comparison(
        f"{run.spec.name}: {len(scores.models)} models side by side",
        [
            ("command", command),
            ("models", "; ".join(map(_described, variants))),
            ("seeds", ", ".join(map(str, dict.fromkeys(trial.seed for trial in every)))),
            ("run", f"{run.spec.name}, spec {run.spec.fingerprint()}"),
            ("evaluated on", _evaluated(scores)),
            ("budget", tables.budget(outcomes)),
            *_made([one for of in outcomes.values() for one in of]),
        ],
        [*tables.quality_tables(scores, reference), tables.cost_table(scores.models, outcomes)],
        _figures(scores, outcomes),
        tables.notes(reference),
    )


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
        ("machine", "; ".join(sorted({outcome.machine for outcome in outcomes}))),
        ("trained", f"{min(dates)} to {max(dates)}"),
        ("trained at commit", ", ".join(sorted({outcome.commit for outcome in outcomes}))),
        ("page", f"{now['date']}, at commit {now['commit']}"),
    ]


def _figures(scores: tables.Scores, outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """AUC against cost: the mean's, or where there is none the first task's that has one."""
    for task in (tables.MEAN, *scores.tasks):
        points = [
            (model, [outcome.cpu_seconds for outcome in outcomes[model]], quality)
            for model in scores.models
            if (quality := scores.over_seeds(model, task, "auc"))
        ]
        if points:
            return [plots.quality_against_cost(points, f"AUC ({task})")]
    return []
