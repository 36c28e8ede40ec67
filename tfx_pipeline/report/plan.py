"""A capacity plan as tables in the console."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping

import psutil
import rich.console
import rich.table

from data.spec import Spec
from modules.training.cluster.config import Role
from modules.training.planning.memory import ProcessMemory, gib, too_large
from modules.training.planning.plan import Plan
from modules.training.planning.speed import Speed
from tfx_pipeline.quiet import width_for


def print_plan(plan: Plan, spec: Spec, timed: Speed | None, limits: Mapping[Role, int]) -> None:
    """Prints everything; what doesn't fit comes last, in red."""
    console = rich.console.Console(width=width_for(sys.stdout), highlight=False)
    size, known = plan.size, plan.parameters
    console.print(
        f"{spec.name}, {plan.phase}, {plan.cluster.placement}: batches of {size.instances:,}"
        f" instances with {size.events} events and {size.targets} targets"
    )
    console.print(_tables(plan))
    console.print(
        f"dense {known.dense:,} parameters: {known.active:,} active for a token"
        f" ({known.expert:,} in experts, 1 of {known.experts} a token; attention's experts are"
        f" mixtures, all active). All: {known.total:,}"
    )
    console.print(_memory(plan))
    console.print(_costs(plan, timed))
    if plan.limit is not None:
        console.print(_fits(plan, plan.limit))
    for line in _alarms(plan, limits):
        console.print(f"DOESN'T FIT: {line}", style="bold red", markup=False)


def _tables(plan: Plan) -> rich.table.Table:
    table = rich.table.Table("table", "rows", "known from", "parameters", "rows take", "state")
    for column in table.columns[1:2] + table.columns[3:]:
        column.justify = "right"
    for t in plan.parameters.tables:
        table.add_row(
            f"{t.name} (large)" if t.large else t.name,
            f"{t.rows.rows:,}",
            t.rows.origin,
            f"{t.parameters:,}",
            gib(t.bytes),
            gib(t.state_bytes),
        )
    return table


def _memory(plan: Plan) -> rich.table.Table:
    parts = list(dict.fromkeys(part for p in plan.memory for part in p.parts))
    table = rich.table.Table("process", *parts, "all")
    for column in table.columns[1:]:
        column.justify = "right"
    for _, alike in itertools.groupby(plan.memory, key=lambda p: (p.role, _rounded(p))):
        same = list(alike)
        name = same[0].name if len(same) == 1 else f"{same[0].name}…{same[-1].index}"
        sizes = [gib(same[0].parts[p]) if p in same[0].parts else "" for p in parts]
        table.add_row(name, *sizes, gib(same[0].bytes))
    return table


def _rounded(process: ProcessMemory) -> str:
    return gib(process.bytes)


def _costs(plan: Plan, timed: Speed | None) -> rich.table.Table:
    table = rich.table.Table("what", "size", "", show_header=False)
    sent = ", ".join(f"{what} {gib(size)}" for what, size in plan.traffic.items())
    table.add_row("network, a step of a trainer", gib(sum(plan.traffic.values())), sent)
    if timed is None:
        table.add_row("step time", "not known", "--calibrate times real steps on this machine")
    else:
        table.add_row(
            "step time",
            f"{timed.steps:.2f} steps/s",
            f"{timed.compute:.3f} s computing, {timed.transfer:.3f} s sending",
        )
    checkpoint = plan.checkpoint
    for what, size in (("full", checkpoint.full), ("delta", checkpoint.delta)):
        table.add_row(
            f"checkpoint, {what}",
            gib(size),
            f"{size / plan.disk:,.1f} s at {gib(plan.disk)}/s (one disk; at most)",
        )
    return table


def _fits(plan: Plan, limit: int) -> rich.table.Table:
    table = rich.table.Table(f"with {gib(limit)} a process", "ps needed", "largest process", "")
    for fit in plan.fits:
        if fit.refused:
            table.add_row(fit.placement, "", "", fit.refused)
            continue
        servers = "no number does" if fit.servers is None else f"{fit.servers:,}"
        needs = f"{fit.largest.name}: {gib(fit.largest.bytes)}"
        table.add_row(
            fit.placement, servers, needs, "fits" if fit.largest.bytes <= limit else "doesn't fit"
        )
    return table


def _alarms(plan: Plan, limits: Mapping[Role, int]) -> list[str]:
    alarms = too_large(list(plan.memory), limits)
    here = plan.cluster.addresses is None and plan.cluster.kubernetes is None
    every, machine = sum(p.bytes for p in plan.memory), psutil.virtual_memory().total
    if here and every > machine:
        largest = max(plan.memory, key=lambda process: process.bytes)
        alarms.append(
            f"{largest.name} needs {gib(largest.bytes)}, all processes {gib(every)};"
            f" this machine has {gib(machine)}"
        )
    return alarms
