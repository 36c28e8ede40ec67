"""Our server, a naive one, and the signature called in process, on the same requests in turns.

    python -m benchmarks.serving [--run=runs/simulator] [--output=serving.json]

Ratios are to the call in process, of one round; the median of the rounds is shown. No two
requests are about the same user: nobody's embedding is known already.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import statistics
import time

from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.serving import contestants, load, run_requests
from benchmarks.serving.contestants import Contestant, Cost
from serving import protos

_RUN = flags.DEFINE_string("run", "runs/simulator", "A finished run (`make run`).")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Length of a turn.", lower_bound=0.5)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each contestant.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_SETTINGS = ((1, 1), (1, 8), (1, 32), (64, 1))
"""(rows a request, clients at once)"""
_BARS = {(1, 1): 1.3, (1, 32): 0.85, (64, 1): 1.05}
_NO_CACHE, _NO_BATCHING = "--user_cache_entries=0", "--enable_batching=false"
_CANDIDATES = (1, 100, 500, 1000)
_MAX_REQUESTS_A_SECOND = 1500

Figures = dict[str, dict[str, float]]


def main(argv: list[str]) -> None:
    del argv
    run = pathlib.Path(_RUN.value)
    model, users = run_requests.pushed_model(run), run_requests.users(run)
    console = Console()
    figures: dict[str, Figures] = {}
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        racers = [
            enter(contestants.direct(model, "in process", onednn=False)),
            enter(contestants.ours(model, "ours")),
            enter(contestants.ours(model, "ours, no user cache", [_NO_CACHE])),
            enter(contestants.ours(model, "ours, nor batching", [_NO_CACHE, _NO_BATCHING])),
            enter(contestants.direct(model, "in process, oneDNN on", onednn=True)),
            enter(contestants.naive(model)),
        ]
        figures["cpu"], figures["wall"] = _race(racers, users)
        console.print(_table("CPU a request, in process = 1", figures["cpu"], bars=True))
        console.print(_table("time between answers, in process = 1", figures["wall"]))
        figures["candidates"] = _candidates(racers[:2], users)
        console.print(
            _table("CPU by candidates of one user, 1 candidate = 1", figures["candidates"])
        )
    figures["start"] = {
        "ours": _start(lambda: contestants.ours(model, "ours"), users),
        "naive Python server": _start(lambda: contestants.naive(model), users),
    }
    console.print(_table("cold start, and memory after 200 requests", figures["start"]))
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2))


def _race(racers: list[Contestant], users: list[protos.Example]) -> tuple[Figures, Figures]:
    cpu: Figures = {racer.name: {} for racer in racers}
    wall: Figures = {racer.name: {} for racer in racers}
    for rows, clients in _SETTINGS:
        rounds: list[dict[str, Cost]] = []
        for _ in range(_ROUNDS.value):
            costs = {}
            for racer in racers:
                requests = _requests(users, rows)
                costs[racer.name] = racer.measure(requests, clients, _SECONDS.value)
            rounds.append(costs)
        name = f"batch {rows}, {clients} clients"
        for racer in racers:
            first = racers[0].name
            ratio = [r[racer.name].cpu / r[first].cpu for r in rounds]
            cpu[racer.name][name] = statistics.median(ratio)
            ratio = [r[racer.name].wall / r[first].wall for r in rounds]
            wall[racer.name][name] = statistics.median(ratio)
            if racer is racers[0]:
                cpu.setdefault("in process, ms", {})[name] = statistics.median(
                    r[first].cpu for r in rounds
                )
    return cpu, wall


def _requests(users: list[protos.Example], rows: int) -> list[list[bytes]]:
    count = int(_MAX_REQUESTS_A_SECOND * _SECONDS.value / rows)
    examples = run_requests.fresh(users)
    return [list(itertools.islice(examples, rows)) for _ in range(count)]


def _candidates(racers: list[Contestant], users: list[protos.Example]) -> Figures:
    """The same users with more and more candidates, seen for the first time or a moment ago."""
    figures: Figures = {}
    for racer in racers:
        new, known = {}, {}
        for count in _CANDIDATES:
            asked = [run_requests.with_candidates(user, count) for user in users[:256]]
            fresh = run_requests.fresh(asked)
            requests = [[next(fresh)] for _ in range(int(500 * _SECONDS.value))]
            new[count] = racer.measure(requests, 1, _SECONDS.value).cpu
            known[count] = racer.measure(requests[:64] * 64, 1, _SECONDS.value).cpu
        rows = {racer.name: new}
        if racer.target:
            rows[f"{racer.name}, users known"] = known
        for name, costs in rows.items():
            figures[name] = {f"{count} candidates": costs[count] / new[1] for count in costs}
    return figures


def _start(start_contestant, users: list[protos.Example]) -> dict[str, float]:
    """Seconds from nothing to the first answer, and megabytes after 200 requests."""
    seconds = []
    for _ in range(_ROUNDS.value):
        examples = run_requests.fresh(users)
        few = itertools.islice(examples, 200)
        first, *others = [run_requests.predict_request(contestants.MODEL, [e]) for e in few]
        start = time.perf_counter()
        with start_contestant() as contestant:
            load.keep_busy(contestant.target, [first])
            seconds.append(time.perf_counter() - start)
            load.keep_busy(contestant.target, others)
            memory = contestant.process.memory_info().rss / 1e6
    return {"first answer, s": statistics.median(seconds), "memory, MB": memory}


def _table(title: str, figures: Figures, bars: bool = False) -> Table:
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in figures.items():
        table.add_row(name, *(f"{row[c]:.2f}" if c in row else "" for c in columns))
    if bars:
        named = {f"batch {rows}, {clients} clients": bar for (rows, clients), bar in _BARS.items()}
        table.add_row("bar", *(f"≤ {named[c]}" if c in named else "" for c in columns))
    return table


if __name__ == "__main__":
    app.run(main)
