"""Writes the events of simulated users, and the best AUC any model can reach on them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import rich.console
import rich.progress
import rich.table
from absl import flags

from data import simulator
from data.spec import Spec, parse_spec

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "runs/simulator/data", "Folder to create.", flag_values=FLAGS)


SIMULATOR_FLAGS = ("users", "items", "events", "channels", "seed")


def define_flags(values: flags.FlagValues) -> None:
    """Adds the simulator's own flags to a command's."""
    flags.DEFINE_integer("users", 6400, "Simulated users.", 1, flag_values=values)
    flags.DEFINE_integer("items", 2000, "Their products.", 1, flag_values=values)
    flags.DEFINE_integer("events", 48, "Events per user on average.", 5, flag_values=values)
    flags.DEFINE_integer(
        "channels",
        simulator.CORE_CHANNELS,
        "Sequence channels; those above the default are noisy copies.",
        simulator.CORE_CHANNELS,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Other seeds, other users.", 0, flag_values=values)


define_flags(FLAGS)


def spec_of(values: flags.FlagValues) -> Spec:
    """The spec that reads what these flags simulate."""
    return parse_spec(simulator.simulator_spec(values.channels, values.items), "simulator")


def simulate(
    values: flags.FlagValues, folder: pathlib.Path, progress: Callable[[int, int], None]
) -> pathlib.Path:
    """Simulates into `folder`; `progress` gets (users done, users). Raises `flags.Error`."""
    try:
        return simulator.simulate(
            folder,
            num_users=values.users,
            num_items=values.items,
            num_channels=values.channels,
            mean_events=values.events,
            seed=values.seed,
            progress=progress,
        )
    except (ValueError, OSError) as error:
        raise flags.Error(str(error)) from None


def main(values: flags.FlagValues) -> int:
    """Simulates and says where."""
    console = rich.console.Console(highlight=False, soft_wrap=True)
    with rich.progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task("simulating users", total=values.users)
        folder = simulate(
            values,
            pathlib.Path(values.output).expanduser(),
            lambda done, _: bar.update(task, completed=done),
        )
    console.print(f"{values.users} users in {folder}")
    console.print(_oracle_table(simulator.oracle_metrics(folder, spec_of(values))))
    return 0


def _oracle_table(oracle: dict[str, dict[str, float | None]]) -> rich.table.Table:
    table = rich.table.Table("task", "examples", "positives", "oracle AUC", "oracle GAUC")
    for task, metrics in oracle.items():
        counts = [f"{metrics[key]:,}" for key in ("examples", "positives")]
        areas = [f"{metrics[key]:.4f}" if metrics[key] else "-" for key in ("auc", "gauc")]
        table.add_row(task, *counts, *areas)
    return table
