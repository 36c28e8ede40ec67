"""Figures as inline SVG that takes the page's font and, for axes and text, its colour."""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from modules.metrics.results import BASELINE, CANDIDATE, OVERALL, Curves, Evaluation
from modules.metrics.tfma_metrics import ORACLE_PREFIX
from tfx_pipeline.report.history import History

_INK = "#010203"
"""Stands for the page's text colour, light or dark."""
_COLOURS = ("#3b82f6", "#e07b00", "#1a9e6c", "#b054d6", "#d6455d", "#7c7c7c")
_DASHES = ("-", "--")
DISTINCT_LINES = len(_DASHES) * len(_COLOURS)
"""Curves of one plot that can be told from each other."""
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(linestyle=_DASHES) * matplotlib.cycler(color=_COLOURS),
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # A name may hold dollars.
}
_MODELS = {CANDIDATE: ("this model", "-"), BASELINE: ("last blessed", "--")}
_MARKERS = "os^Dv"
_LABELLED_CELLS = 12
"""Heat maps write a number into each cell up to this many columns."""
_ids = itertools.count()


def roc(evaluation: Evaluation, task: str) -> str:
    """ROC curves of a binary task."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_COLOURS[-1], linewidth=1, linestyle=":", label="chance")
        for label, style, curves, model in _curves(evaluation, task):
            auc = evaluation.value(task, "auc", model)
            axes.plot(
                curves.false_positive_rate,
                curves.true_positive_rate,
                style,
                label=f"{label}, AUC {auc:.4f}",
            )
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.legend(loc="lower right")

    return _svg(f"{task}: ROC", draw)


def calibration(evaluation: Evaluation, task: str) -> str:
    """Observed against predicted probability of a binary task, on bins of equal size."""

    def draw(axes: Axes) -> None:
        top = 0.0
        for label, style, curves, _ in _curves(evaluation, task):
            axes.plot(curves.predicted, curves.observed, style, marker="o", ms=3.5, label=label)
            top = max(top, curves.predicted.max(initial=0.0), curves.observed.max(initial=0.0))
        line = {"color": _COLOURS[-1], "linewidth": 1, "linestyle": ":"}
        axes.plot([0, top], [0, top], label="perfect", **line)
        axes.set(
            xlabel="predicted probability (mean of a bin)",
            ylabel="observed share of positives",
            aspect="equal",
        )
        axes.legend(loc="upper left")

    return _svg(f"{task}: calibration", draw)


def by_slice(evaluation: Evaluation, task: str, metric: str) -> str:
    """A metric of a task for each bucket of user activity."""
    slices = [s for s in evaluation.slices if s != OVERALL]

    def draw(axes: Axes) -> None:
        rows = [
            ("this model", "o-", metric, CANDIDATE),
            ("last blessed", "s--", metric, BASELINE),
            ("oracle", "^:", ORACLE_PREFIX + metric, CANDIDATE),
        ]
        for label, style, name, model in rows:
            values = [evaluation.value(task, name, model, s) for s in slices]
            if any(value == value for value in values):
                axes.plot(slices, values, style, label=label)
        axes.set(xlabel="user's events", ylabel=metric.upper())
        axes.margins(y=0.25)
        axes.legend()

    return _svg(f"{task}: {metric.upper()} by user activity", draw)


def training(history: History, curves: Mapping[str, str], ylabel: str, title: str) -> str:
    """Curves of a training phase over its steps: value's name -> what the legend calls it."""

    def draw(axes: Axes) -> None:
        for name, label in curves.items():
            steps, values = zip(*history.curves[name], strict=True)
            few = len(steps) < 30
            axes.plot(steps, values, marker="o" if few else None, ms=3.5, label=label)
        axes.set(xlabel="training step", ylabel=ylabel)
        if len(curves) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return _svg(title, draw)


def expert_load(history: History, layer: int) -> str:
    """Heat map: which share of the tokens each expert of a layer took, epoch by epoch."""
    load = [epoch[layer] for epoch in history.expert_load]
    num_epochs, num_experts = len(load), len(load[0])

    def draw(axes: Axes) -> None:
        mesh = axes.pcolormesh(load, vmin=0.0, cmap="viridis", edgecolors="white", linewidth=0.5)
        if num_experts <= _LABELLED_CELLS:
            for epoch, row in enumerate(load):
                for expert, share in enumerate(row):
                    colour = "white" if mesh.norm(share) < 0.6 else "black"
                    place = {"ha": "center", "va": "center", "fontsize": 9}
                    axes.text(expert + 0.5, epoch + 0.5, f"{share:.0%}", color=colour, **place)
        axes.set_xticks([e + 0.5 for e in range(num_experts)], range(1, num_experts + 1))
        step = max(1, num_epochs // 8)
        epochs = range(0, num_epochs, step)
        axes.set_yticks([e + 0.5 for e in epochs], [e + 1 for e in epochs])
        axes.grid(False)
        axes.invert_yaxis()
        axes.set(xlabel=f"expert (even share: {1 / num_experts:.0%})", ylabel="epoch")
        axes.figure.colorbar(mesh, ax=axes, label="share of tokens")

    height = 1.6 + 0.28 * min(num_epochs, 12)
    return _svg(f"{history.phase}, layer {layer + 1}: expert load", draw, height)


def durations(nodes: Sequence[tuple[str, float]]) -> str:
    """Seconds of each node of the pipeline, in its order."""

    def draw(axes: Axes) -> None:
        names, seconds = zip(*nodes, strict=True)
        bars = axes.barh(range(len(names)), seconds, color=_COLOURS[0])
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="wall time (s)")

    return _svg("Time of each pipeline node", draw, 0.9 + 0.27 * len(nodes), width=6.4)


def quality_against_cost(
    models: Sequence[tuple[str, Sequence[float], Sequence[float]]], ylabel: str
) -> str:
    """A point a model, (name, CPU seconds of each seed, quality of each); bars span the seeds."""

    def draw(axes: Axes) -> None:
        for i, (name, seconds, quality) in enumerate(models):
            x, y = sum(seconds) / len(seconds), sum(quality) / len(quality)
            axes.errorbar(
                x,
                y,
                yerr=[[y - min(quality)], [max(quality) - y]],
                fmt=_MARKERS[i // len(_COLOURS) % len(_MARKERS)],
                capsize=3,
                label=name,
            )
        axes.set(xlabel="CPU seconds of a training", ylabel=ylabel)
        axes.margins(0.15)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return _svg(f"{ylabel} against cost", draw, width=6.4)


def quality_against_users(
    models: Sequence[tuple[str, Sequence[tuple[float, Sequence[float]]]]], ylabel: str
) -> str:
    """A line a model, (name, points); a point is a share of the users that fine-tuning saw, and the
    quality of each seed; bars span the seeds."""

    def draw(axes: Axes) -> None:
        for name, points in models:
            shares = [100 * share for share, _ in points]
            means = [sum(quality) / len(quality) for _, quality in points]
            below = [mean - min(q) for mean, (_, q) in zip(means, points, strict=True)]
            above = [max(q) - mean for mean, (_, q) in zip(means, points, strict=True)]
            axes.errorbar(
                shares, means, yerr=[below, above], marker="o", ms=4, capsize=3, label=name
            )
        axes.set(xscale="log", xlabel="users fine-tuned on, %", ylabel=ylabel)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return _svg(f"{ylabel} of less data", draw, width=6.4)


def _curves(evaluation: Evaluation, task: str) -> list[tuple[str, str, Curves, str]]:
    return [
        (label, style, evaluation.curves[model, task], model)
        for model, (label, style) in _MODELS.items()
        if (model, task) in evaluation.curves
    ]


def _svg(title: str, draw: Callable[[Axes], None], height: float = 3.4, width: float = 4.4) -> str:
    """Draws a titled figure; sizes are inches at 72 pixels."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        draw(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Inline in HTML the namespaces are known, and ids must differ between figures.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    prefix = f"f{next(_ids)}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    label = html.escape(title, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
