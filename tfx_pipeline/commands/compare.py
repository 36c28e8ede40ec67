"""Trains models on a finished run's instances and sets them side by side on one page.

A model is an architecture's word, or `name=key:value,key:value` with keys of the spec:

    --models=supermoe,bert,wide=model.hidden_dim:128,model.ffn_dim:256,click-only=tasks:[click]

Every model trains on the same instances with every seed, for as many epochs, and is asked about the
same targets; `--jobs` trainings go on at a time, each in a process of its own. What is finished
isn't trained again, unless spec, data or code changed; a command that was stopped goes on. The page
is <output>.md and <output>.html.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING

from absl import flags

from tfx_pipeline import quiet
from tfx_pipeline.commands.report import shown
from tfx_pipeline.comparison.finished_run import finished_run
from tfx_pipeline.comparison.variants import Variant, parse_variants
from tfx_pipeline.layout import Layout, OutputError, output_of
from tfx_pipeline.progress import Lines

if TYPE_CHECKING:
    import rich.console

    from tfx_pipeline.report.comparison import Comparison

FLAGS = flags.FlagValues()
flags.DEFINE_string("run", "runs/simulator", "Folder of the finished run.", flag_values=FLAGS)
flags.DEFINE_string("models", "supermoe,bert", "The models, as above.", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each model.", flag_values=FLAGS)
flags.DEFINE_integer(
    "epochs", None, "Of fine-tuning, for all (default: the run's).", 1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "pretrain_epochs", None, "Of pre-training, likewise; 0: none.", 0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "jobs", None, "Trainings at a time (default: one a core).", 1, flag_values=FLAGS
)
flags.DEFINE_string(
    "reference", "", "The model others are tested against (default: the first).", flag_values=FLAGS
)
flags.DEFINE_string(
    "output", "", "The page, without its ending (default: <run>/comparison).", flag_values=FLAGS
)


def main(values: flags.FlagValues) -> int:
    """Trains what isn't trained yet, and writes the page."""
    layout = output_of(values.run)
    run = finished_run(layout)
    seeds = _seeds(values.seeds)
    asked = {"pretrain": values.pretrain_epochs, "finetune": values.epochs}
    epochs = {phase: count for phase, count in asked.items() if count is not None}
    variants = parse_variants(values.models, run.spec, epochs, _is_pretrained)
    reference = _reference(values.reference, variants)
    page = _page_path(values.output, layout)
    layout.prepare()
    with quiet.redirected(layout.log) as console:
        from tfx_pipeline.comparison import side_by_side, trials
        from tfx_pipeline.comparison.page import page_of

        every = trials.plan(variants, seeds, run, layout.comparison)
        before = sum(trial.finished for trial in every)
        if before:
            console.print(f"  {before} of {len(every)} trainings were made before", markup=False)
        with Lines(console) as lines:
            jobs = values.jobs or len(os.sched_getaffinity(0))
            side_by_side.carry_out(every, run, jobs, layout.log, lines)
        command = f"python -m tfx_pipeline {shlex.join(sys.argv[1:])}"
        comparison = page_of(every, variants, reference, run, command)
        _write(page, comparison)
        _print(comparison, console)
        console.print(f"Page: {shown(page)}.md, {shown(page)}.html", markup=False)
    return 0


def _is_pretrained(architecture: str) -> bool:
    from modules.models.architectures import ARCHITECTURES

    return ARCHITECTURES[architecture].pretraining is not None


def _seeds(texts: list[str]) -> list[int]:
    try:
        seeds = [int(text) for text in texts]
    except ValueError:
        raise flags.Error(f"--seeds={','.join(texts)}: whole numbers, as 0,1,2") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise flags.Error(f"--seeds={','.join(texts)}: give at least one, and each once")
    return seeds


def _reference(name: str, variants: list[Variant]) -> str:
    names = [variant.name for variant in variants]
    if name and name not in names:
        raise flags.Error(f"--reference={name}: none of the models: {', '.join(names)}")
    return name or names[0]


def _page_path(text: str, layout: Layout) -> pathlib.Path:
    path = pathlib.Path(text).expanduser().absolute() if text else layout.comparison / "comparison"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output={text}: can't be written: {error.strerror}") from None
    return path


def _write(page: pathlib.Path, comparison: Comparison) -> None:
    from tfx_pipeline.report.comparison import write_html, write_markdown

    html = page.with_name(f"{page.name}.html")
    write_html(html, comparison)
    write_markdown(page.with_name(f"{page.name}.md"), comparison, html)


def _print(comparison: Comparison, console: rich.console.Console) -> None:
    import rich.box
    import rich.table

    for table in (comparison.tables[0], comparison.tables[-1]):
        shown_table = rich.table.Table(
            title=table.title, box=rich.box.SIMPLE_HEAD, title_justify="left"
        )
        for i, name in enumerate(table.header):
            shown_table.add_column(name, justify="right" if i else "left")
        for row in table.rows:
            shown_table.add_row(*(cell.text for cell in row))
        console.print(shown_table)
