"""The report is valid HTML that needs nothing from outside; the table says the same."""

import collections
import io
import json
import math
import pathlib
import re

import html5lib
import numpy as np
import pytest
import rich.console

from modules.metrics.results import BASELINE, CANDIDATE, OVERALL, Curves, Evaluation, Failure
from modules.training.incidents import Incidents
from tests.metrics.instances import small_spec
from tfx_pipeline.report.console import ingestion_line, metrics_table
from tfx_pipeline.report.history import read_history
from tfx_pipeline.report.page import NodeTime, write_report

SPEC = small_spec()
SLICES = (OVERALL, "[0, 10)", "[10, 20)", "20+")
NASTY = '<script>alert("x")</script> & $x_1$'


CHIEF = {"role": "chief", "index": 0}
EVENTS = [
    {"time": 1000.0, "event": "start", **CHIEF},
    {"time": 1001.0, "event": "training", "step": 0, "repeated": 0},
    {"time": 1002.0, "event": "death", "signal": "SIGKILL", **CHIEF},
    {"time": 1003.0, "event": "restart", "seconds_out": 1.0, **CHIEF},
    {"time": 1021.0, "event": "resumed", "step": 40},
    {"time": 1022.0, "event": "training", "step": 40, "repeated": 7},
    {"time": 1041.0, "event": "shard_lost", "shard": 1, "error": "gone"},
    {"time": 1048.0, "event": "stalled", "step": 50, "seconds": 5.0},
    {"time": 1050.0, "event": "shard_back", "shard": 1, "seconds": 9.0, "restored": True},
]


def evaluation(**changes) -> Evaluation:
    rng = np.random.default_rng(0)
    curve = np.linspace(1, 0, 30)
    metrics, curves = {}, {}
    for model in (CANDIDATE, BASELINE):
        for task in SPEC.tasks:
            for slice_ in SLICES:
                values = {"count": 1234.0}
                if task.type == "binary":
                    values |= {"mean_label": 0.3, "auc": 0.7 + 0.01 * rng.random()}
                    curves[model, task.name] = Curves(
                        curve, np.sqrt(curve), np.linspace(0.1, 0.9, 9), np.linspace(0.2, 0.8, 9)
                    )
                if task.name == "click":
                    values |= {"gauc": 0.6, "gauc_impression_share": 0.5}
                    values |= {"oracle_auc": 0.8, "oracle_gauc": 0.7} if model == CANDIDATE else {}
                if task.type == "multiclass":
                    values |= {"accuracy": 0.4321, "log_loss": 1.0}
                if task.type == "regression":
                    values |= {"mse": 0.9876, "mae": 0.5}
                metrics[model, task.name, slice_] = values
    metrics[CANDIDATE, "click", OVERALL] |= {"auc": 0.77, "gauc": 0.61}
    metrics[BASELINE, "click", OVERALL] |= {"auc": 0.75}
    found = {"metrics": metrics, "curves": curves, "blessed": True, "failures": ()}
    return Evaluation(**(found | changes))


def write_history(folder: pathlib.Path) -> pathlib.Path:
    lines = [
        {"phase": "finetune", "step": step, "epoch": step / 10, "loss": 1 / step}
        for step in range(1, 21)
    ]
    for epoch in (1, 2):
        lines.append(
            {"phase": "finetune", "step": 10 * epoch, "epoch": epoch, "epoch_end": True}
            | {"loss": 0.5 / epoch, "val/click/auc": 0.6 + epoch / 100, "val/vip/auc": math.nan}
            | {"lambda/click": 2.0, "lambda/vip": 1.0, "domain/loss": 1.0}
            | {"val/a/auc": 0.5, "val/sequence_a/auc": 0.5}
            | {f"mcp/sequence_channel{i}/loss": i for i in range(14)}
            | {"expert_load": [[0.25, 0.75], [0.4, 0.6], [0.5, 0.5]]}
            | {"lifecycle": {"item": {"admitted": 4321 * epoch, "tail_ids": 17}}}
        )
    folder.mkdir()
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    history = read_history(write_history(folder / "run"))
    write_report(
        folder / "report.html",
        SPEC,
        evaluation(blessed=False, failures=(Failure("click", "auc", NASTY),)),
        ingestion={"events": 12345, "targets": {"train": {"click": 99}}, NASTY: 1},
        nodes=[NodeTime("Trainer", "done", 61.2), NodeTime(NASTY, "cached", 0.1)],
        histories=[history],
        incidents={"Pretrain": Incidents.of([]), "Finetune": Incidents.of(EVENTS)},
    )
    return (folder / "report.html").read_text()


def test_it_is_valid_html(page):
    html5lib.HTMLParser(strict=True).parse(page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    # Every reference inside the page (clip paths, markers, links) has its target.
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_it_needs_nothing_from_outside(page):
    assert not re.search(r"https?:|//cdn|@import|<script|<link|<img|<iframe", page)


def test_every_task_slice_node_and_phase_is_in_it(page):
    body = re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    for task in SPEC.tasks:
        assert f"<caption>{task.name}</caption>" in body
    for name in (*SLICES, "Trainer"):
        assert name in page
    for slice_ in SLICES:
        assert body.count(f'<th scope="row" class="text">{slice_}</th>') == len(SPEC.tasks)
    for number in ("0.7700", "0.8000", "90%", "0.7500", "+0.0200", "0.4321", "0.9876", "12,345"):
        assert number in body, number
    titles = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert {
        "click: ROC",
        "vip: calibration",
        "finetune: loss",
        "finetune: evaluation users, AUC",
    } <= {*titles}
    assert sum("expert load" in title for title in titles) == 3
    assert "click: GAUC by user activity" in titles and "kind: ROC" not in titles


def test_curves_of_one_kind_share_plots_in_which_they_can_be_told_apart(page):
    figures = re.findall(r'<svg role="img" aria-label="([^"]+)"(.*?)</svg>', page, re.S)
    titles = [title for title, _ in figures]
    assert titles.count("finetune: weights of tasks") == 1
    assert titles.count("finetune: domain, loss") == 1
    channels = [drawn for title, drawn in figures if title == "finetune: masked channels, loss"]
    assert len(channels) == 2
    assert ["".join(channels).count(f">channel{i}<") for i in range(14)] == [1] * 14
    # A legend's sample is drawn as its curve is: two strokes of each kind.
    strokes = re.findall(r'style="fill: none; (stroke[^"]*)"', channels[0])
    told = collections.Counter(s for s in strokes if "stroke-width: 1.5" in s)
    assert len(told) == 12 and set(told.values()) == {2}


def test_a_task_keeps_its_name(page):
    (curves,) = re.findall(r'aria-label="finetune: evaluation users, AUC"(.*?)</svg>', page, re.S)
    assert ">sequence_a<" in curves and ">a<" in curves


def test_a_dynamic_tables_life_is_told_by_epoch(page):
    (life,) = re.findall(r"<table>\n<caption>finetune: item</caption>.*?</table>", page, re.S)
    assert re.findall(r"<th scope[^>]*>([^<]+)", life) == ["epoch", "admitted", "tail ids"]
    assert re.findall(r"<td>([^<]+)", life) == ["1", "4,321", "17", "2", "8,642", "17"]


def test_what_happened_in_training_and_what_it_cost(page):
    told = re.search(r'<section id="incidents">(.*?)</section>', page, re.S)[1]
    assert "<h3>Finetune</h3>" in told and "<h3>Pretrain</h3>" not in told
    assert "stood still for 29 s; 7 steps were repeated" in " ".join(told.split())
    what = re.findall(r"<td>(\d+)</td><td class=\"text\">([^<]+)</td>\s*<td>([\d.]*)", told)
    assert what[0] == ("2", "chief 0 ended by SIGKILL", "")
    assert what[-1] == ("50", "shard 1 is back, restored from the checkpoint", "9.0")


def test_names_are_escaped(page):
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 4  # Failure, count, cached node, its bar.


def test_axes_take_the_pages_colour(page):
    assert "currentColor" in page and "#010203" not in page


def test_a_run_with_nothing_to_add_makes_a_smaller_report(tmp_path):
    only = {k: v for k, v in evaluation().metrics.items() if k[0] == CANDIDATE}
    write_report(tmp_path / "r.html", SPEC, evaluation(metrics=only, curves={}))
    page = (tmp_path / "r.html").read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert "Blessed: every threshold is met" in page
    assert 'id="training"' not in page and 'id="dynamic"' not in page


def test_history(tmp_path):
    history = read_history(write_history(tmp_path / "run"))
    assert history.phase == "finetune"
    assert history.curves["loss"][0] == (1, 1.0) and len(history.curves["loss"]) == 20
    assert history.curves["epoch loss"] == [(10, 0.5), (20, 0.25)]
    assert history.curves["val/click/auc"] == [(10, 0.61), (20, 0.62)]
    assert "val/vip/auc" not in history.curves  # Never finite.
    assert len(history.expert_load) == 2
    assert read_history(tmp_path / "skipped") is None


def test_a_damaged_history_names_the_line(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"phase": "x", "step": 1}\n{"phase": "x", "st')
    with pytest.raises(ValueError, match="history.jsonl, line 2: not a history record"):
        read_history(tmp_path)


def test_what_was_read():
    summary = {"events": 1234, "users": 56, "duplicates": {"events": 7, "users": 0}}
    assert ingestion_line(summary | {"dead_letters": 8}) == (
        "1,234 events of 56 users; 7 duplicate events dropped, 8 malformed rows set aside"
    )


def test_table():
    console = rich.console.Console(width=160, file=io.StringIO())
    console.print(metrics_table(evaluation(), SPEC))
    header, _, click, kind, *_ = [x for x in console.file.getvalue().splitlines() if x.strip()]
    assert re.split(r"\s{2,}", header.strip()) == [
        "task", "targets", "AUC", "oracle", "gap closed", "vs blessed", "GAUC", "oracle GAUC",
        "GAUC vs blessed", "other metrics",
    ]  # fmt: skip
    assert click.split() == [
        "click", "1,234", "0.7700", "0.8000", "90%", "+0.0200", "0.6100", "0.7000", "+0.0100",
    ]  # fmt: skip
    assert "accuracy 0.4321, log loss 1.0000" in kind


def test_table_leaves_out_what_isnt_known():
    metrics = {(CANDIDATE, t.name, OVERALL): {"auc": 0.7, "count": 5.0} for t in SPEC.tasks}
    table = metrics_table(evaluation(metrics=metrics), SPEC)
    headers = [column.header for column in table.columns]
    assert headers == ["task", "targets", "AUC", "other metrics"]
