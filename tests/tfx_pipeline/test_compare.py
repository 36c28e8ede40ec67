"""`compare`: that each model is trained once and alike, and what the page says of them."""

from __future__ import annotations

import dataclasses
import json
import re
import types

import html5lib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags

from modules.metrics.auc import auc
from tests.data.small import small_spec
from tests.tfx_pipeline.test_cli import _run
from tests.tfx_pipeline.test_variants import BASE, variants
from tfx_pipeline.comparison import cost, tables, training, trials
from tfx_pipeline.comparison.finished_run import FinishedRun, finished_run
from tfx_pipeline.comparison.page import of_less_data, page_of, scores_by_activity
from tfx_pipeline.comparison.trials import Outcome, Trial
from tfx_pipeline.comparison.variants import seeded
from tfx_pipeline.layout import Layout
from tfx_pipeline.report.comparison import Comparison, write_html, write_markdown
from tfx_pipeline.report.plots import quality_against_users


def test_without_a_run_the_command_says_how_to_make_one(tmp_path):
    asked = _run("compare", f"--run={tmp_path}/none")
    assert asked.returncode == 2 and "heavy: []" in asked.stdout
    assert asked.stderr.strip() == (
        f"error: --run={tmp_path}/none: no run here; `python -m tfx_pipeline run"
        f" --output={tmp_path}/none` makes one (of the simulator)"
    )
    (tmp_path / "half").mkdir()
    (tmp_path / "half/spec.json").write_text(BASE.model_dump_json())
    with pytest.raises(flags.Error, match="its run has no SequenceExampleGen/examples yet"):
        finished_run(Layout(tmp_path / "half"))


# What the tables say, of made-up predictions -------------------------------------------------

RNG = np.random.default_rng(0)
USERS = np.repeat(np.arange(60), 8)
LABELS = (RNG.random(480) < 0.4).astype(np.float32)
NOISE = RNG.random((4, 480))


def made_up(trial: Trial) -> pa.Table:
    """`good` mostly knows click's label, `twin` says the same as `base`; `only` lacks vip."""
    known = {"good": 0.6, "base": 0.15, "twin": 0.15, "only": 0.15}[trial.model]
    parts = []
    for task in trial.spec.tasks:
        score = known * LABELS + (1 - known) * NOISE[trial.seed]
        if task.name == "vip":
            score = NOISE[2 + trial.seed]
        columns = {
            "user_id": pa.array([f"u{u}" for u in USERS]),
            "activity": pa.array(USERS),
            "task": pa.array([task.name] * len(USERS)),
            "label": pa.array(LABELS),
            "score": pa.array(score.astype(np.float32)),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def trials_of(*models, seeds=(0, 1)):
    both = small_spec(tasks=[{"name": n, "label": n} for n in ("buy", "vip")])
    one = small_spec(tasks=[{"name": "buy", "label": "buy"}])
    return [Trial(m, s, one if m == "only" else both, None, None) for s in seeds for m in models]


@pytest.fixture(scope="module")
def scores():
    return tables.Scores(trials_of("base", "good", "twin", "only"), made_up)


def cells(scores, metric, reference="base"):
    (table,) = [t for t in tables.quality_tables(scores, reference) if t.title == metric]
    return {row[0].text: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}


def test_a_cell_is_the_mean_and_deviation_over_seeds(scores):
    expected = [auc(LABELS, 0.6 * LABELS + 0.4 * NOISE[seed]) for seed in (0, 1)]
    good = cells(scores, "AUC")["good"]["buy"]
    assert good.text == f"{np.mean(expected):.4f} ± {np.std(expected, ddof=1):.4f} **"
    assert good.best and not cells(scores, "AUC")["base"]["buy"].best
    means = [(auc(LABELS, 0.6 * LABELS + 0.4 * NOISE[s]) + auc(LABELS, NOISE[2 + s])) / 2
             for s in (0, 1)]  # fmt: skip
    assert cells(scores, "AUC")["good"]["mean"].text.startswith(f"{np.mean(means):.4f} ±")


def test_equal_predictions_are_never_marked_and_share_the_best(scores):
    for metric in ("AUC", "GAUC", "Log loss (nats)", "Recall at precision 50%"):
        twin, base = cells(scores, metric)["twin"], cells(scores, metric)["base"]
        assert all("*" not in cell.text for cell in twin.values())
        assert [c.text for c in twin.values()] == [c.text for c in base.values()]
    same = [cells(scores, "AUC")[m]["vip"] for m in ("base", "good", "twin")]
    assert all(cell.best and "*" not in cell.text for cell in same)


def test_the_reference_is_never_marked_and_others_are_against_it(scores):
    found = cells(scores, "AUC", reference="good")
    assert "*" not in found["good"]["buy"].text
    assert found["base"]["buy"].text.endswith("**")


def test_gauc_by_activity_is_that_of_each_buckets_users_alone(tmp_path):
    """Users from 30 events on are a riddle to all; nobody has 100. (User u has u events.)"""
    every = []
    for trial in trials_of("base", "good"):
        folder = tmp_path / f"{trial.model}-{trial.seed}"
        folder.mkdir()
        table = made_up(trial)
        score = np.where(table["activity"].to_numpy() < 30, table["score"].to_numpy(), 0.5)
        at = table.schema.get_field_index("score")
        pq.write_table(
            table.set_column(at, "score", pa.array(score)), folder / "predictions.parquet"
        )
        every.append(dataclasses.replace(trial, folder=folder))
    by_activity = scores_by_activity(every, (30, 100))
    assert [scores.num_users for scores in by_activity.values()] == [30, 30]  # 29 and 30 apart
    table = tables.activity_table(by_activity, "base")
    assert table.header == ["model", "[0, 30)", "[30, 100)"]
    by_model = {row[0].text: row[1:] for row in table.rows}
    assert by_model["good"][0].best and by_model["good"][0].text.endswith("**")
    assert [by_model[model][1].text for model in by_model] == ["0.5000 ± 0.0000"] * 2
    assert "mean over tasks" in table.note  # buy and vip


def test_lower_log_loss_is_better(scores):
    assert cells(scores, "Log loss (nats)")["good"]["buy"].best


def test_a_model_without_a_task_has_no_mean(scores):
    only = cells(scores, "AUC")["only"]
    assert only["vip"].text == only["mean"].text == "–"
    assert only["buy"].text == cells(scores, "AUC")["base"]["buy"].text


def test_scores_that_rank_are_not_judged_as_probabilities():
    """vip of `base` and `good` is ranked; of `twin` it is pointwise, which alone has a mean."""
    every = trials_of("base", "good", "twin")
    for n, trial in enumerate(every):
        if trial.model != "twin":
            buy, vip = trial.spec.tasks
            ranked = vip.model_copy(update={"loss": "bpr"})
            spec = trial.spec.model_copy(update={"tasks": (buy, ranked)})
            every[n] = dataclasses.replace(trial, spec=spec)
    found = tables.Scores(every, made_up)
    for metric in ("Log loss (nats)", "Accuracy"):
        of = cells(found, metric)
        assert of["base"]["vip"].text == of["good"]["vip"].text == of["good"]["mean"].text == "–"
        assert "–" not in {of["good"]["buy"].text, of["twin"]["vip"].text, of["twin"]["mean"].text}
    for metric in ("AUC", "GAUC", "Recall at precision 50%"):
        assert "–" not in {
            cell.text for row in cells(found, metric).values() for cell in row.values()
        }


def test_other_targets_are_refused():
    def fewer(trial):
        table = made_up(trial)
        return table.slice(1) if trial.model == "good" else table

    with pytest.raises(ValueError, match="evaluation targets of 'buy' aren't the other models'"):
        tables.Scores([dataclasses.replace(t, folder="there") for t in trials_of("base", "good")],
                      fewer)  # fmt: skip


OUTCOME = Outcome(
    steps={"pretrain": 30, "finetune": 70},
    cpu_seconds=100.0,
    seconds_a_step=0.01,
    total=1000,
    active=400,
    tuned=50,
    threads=1,
    commit="c0ffee",
    machine="2 cores",
    date="2026-01-01 00:00 UTC",
)


def test_the_budget_is_said_as_it_was():
    alone = dataclasses.replace(OUTCOME, steps={"finetune": 70})
    assert tables.budget({"a": [OUTCOME], "b": [OUTCOME]}) == (
        "pretrain: 30 steps each · finetune: 70 steps each"
    )
    assert tables.budget({"a": [OUTCOME], "b": [alone]}) == (
        "pretrain steps: a 30; b none · finetune: 70 steps each"
    )
    slow = dataclasses.replace(OUTCOME, cpu_seconds=140.0)
    (row,) = tables.cost_table(["a"], {"a": [OUTCOME, slow]}).rows
    said = [cell.text for cell in row]
    assert said == ["a", "1,000", "400", "50", "5.0", "30", "70", "120 ± 28", "10.0 ± 0.0"]


def test_models_that_differ_in_their_users_only_are_a_curve():
    found = variants(
        "bert,bert-5=model.architecture:bert,training.finetune.user_share:0.05,"
        "bert-20=model.architecture:bert,training.finetune.user_share:0.2,"
        "wide-5=model.architecture:bert,model.ffn_dim:24,training.finetune.user_share:0.05"
    )
    every = [Trial(v.name, s, seeded(v, s), None, None) for s in (0, 1) for v in found]
    assert of_less_data(every) == [("bert", [(0.05, "bert-5"), (0.2, "bert-20"), (1.0, "bert")])]
    assert of_less_data(every[:1]) == []
    figure = quality_against_users(
        [("a|b", [(0.05, [0.6, 0.7]), (1.0, [0.8])]), ("c", [(1.0, [0.9])])], "AUC (mean)"
    )
    html5lib.HTMLParser(strict=True).parse(f"<!DOCTYPE html><title>t</title>{figure}")
    assert "a|b" in figure and "users fine-tuned on, %" in figure


def test_the_page_is_valid_html_and_markdown_with_every_cell(scores, tmp_path):
    nasty = "<b>|*x_1*"
    page = Comparison(
        "Two models",
        [("command", nasty)],
        tables.quality_tables(scores, "base"),
        [],
        tables.notes("base"),
    )  # fmt: skip
    write_html(tmp_path / "page.html", page)
    write_markdown(tmp_path / "page.md", page, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    html5lib.HTMLParser(strict=True).parse(html)
    markdown = (tmp_path / "page.md").read_text()
    assert r"\<b>\|\*x_1\*" in markdown
    for table in page.tables:
        for row in table.rows:
            assert all(cell.text in html for cell in row)
            assert all(cell.text.replace("*", r"\*") in markdown for cell in row)
    widths = {
        line.replace(r"\|", "").count("|") for line in markdown.splitlines() if "| buy" in line
    }
    assert widths <= {3, 4, 5}


# Real trainings, tiny ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(transformed) -> FinishedRun:
    folder = transformed.folder
    return FinishedRun(BASE, folder / "raw", folder / "transformed", folder / "graph")


MODELS = (
    "small=model.architecture:bert,"
    "plain=model.architecture:bert,training.pretrain.epochs:0,model.ffn_dim:24"
)
BUDGET = {"pretrain": 1, "finetune": 1}


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """Of a killed and a going-on call: the trials, and which phases ran in each call."""
    found = variants(MODELS, BUDGET)
    every = trials.plan(found, [0, 1], run, tmp_path_factory.mktemp("comparison"))
    every = [every[0], every[3]]  # small from seed 0, plain from seed 1
    calls = [[], []]
    phases = {p.NAME: p.run_fn for p in (training.pretrain, training.finetune)}

    def recorded(call, name, dies):
        def run_fn(fn_args):
            calls[call].append(name)
            if name == dies:
                raise KeyboardInterrupt  # nothing of ours catches it, as nothing does a kill
            phases[name](fn_args)

        return types.SimpleNamespace(NAME=name, run_fn=run_fn)

    with pytest.MonkeyPatch.context() as patch:
        for call, dies in enumerate(("finetune", None)):
            for name in phases:
                patch.setattr(training, name, recorded(call, name, dies))
            for trial in every:
                if trial.finished:
                    continue
                try:
                    trials.carry_out(trial, run)
                except KeyboardInterrupt:
                    assert not trial.finished
                    break
    return every, calls


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_restart_goes_on_where_it_was_stopped(trained):
    every, (first, second) = trained
    assert first == ["pretrain", "finetune"]
    assert second == ["finetune", "finetune"]  # the pre-training isn't done again
    assert all(trial.finished for trial in every)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_all_have_the_same_budget_and_targets(trained):
    every, _ = trained
    small, plain = (trials.outcome_of(trial).steps for trial in every)
    assert small.keys() == {"pretrain", "finetune"} and plain.keys() == {"finetune"}
    assert small["finetune"] == plain["finetune"] > 0
    known = [trials.predictions_of(t).drop(["score"]) for t in every]
    assert known[0] == known[1] and known[0].num_rows
    scores = [trials.predictions_of(trial)["score"].to_numpy() for trial in every]
    assert all(np.isfinite(s).all() for s in scores)
    assert not np.allclose(*scores)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_its_auc_is_the_one_that_training_saw(trained):
    """The module on Transform's files, the SavedModel on raw ones: the same, but for a tie."""
    every, _ = trained
    for trial in every:
        last = (training.model_of(trial.folder) / "history.jsonl").read_text().splitlines()[-1]
        table = trials.predictions_of(trial).to_pandas()
        for task in ("click", "vip"):
            of_task = table[table.task == task]
            found = auc(of_task.label.to_numpy(), of_task.score.to_numpy())
            assert found == pytest.approx(json.loads(last)[f"val/{task}/auc"], abs=1e-3)
        stars = table[table.task == "stars"]
        assert set(stars.label) == {0.0, 1.0, 2.0} and stars.score.between(0, 1).all()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_outcomes_say_what_it_took(trained):
    every, _ = trained
    small, plain = (trials.outcome_of(trial) for trial in every)
    # Two matrices and a bias of 8 more columns, in tables' and pre-training's absence alike.
    assert plain.active - small.active == plain.total - small.total == 8 * (16 + 16 + 1)
    assert 0 < small.tuned <= small.total
    assert all(o.cpu_seconds > 0 and o.seconds_a_step > 0 for o in (small, plain))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_page_says_what_its_figures_depend_on(trained, run):
    every, _ = trained
    page = page_of(every, variants(MODELS, BUDGET), "small", run, "the command")
    said = dict(page.facts)
    steps = trials.outcome_of(every[0]).steps
    assert said["command"] == "the command" and said["seeds"] == "0, 1"
    assert said["budget"] == (
        f"pretrain steps: small {steps['pretrain']}; plain none"
        f" · finetune: {steps['finetune']} steps each"
    )
    assert "plain (model.architecture: bert, training.pretrain.epochs: 0" in said["models"]
    assert re.search(r"\d cores of .*GiB", said["machine"])
    assert {"AUC", "GAUC", "GAUC by activity", "Other tasks", "Cost"} <= {
        table.title for table in page.tables
    }
    (figure,) = page.figures
    assert ">small<" in figure and "CPU seconds" in figure


@pytest.mark.slow
@pytest.mark.exhaustive
def test_another_spec_or_other_code_is_another_trial(trained, run, monkeypatch):
    every, _ = trained
    folder = every[0].folder.parents[1]
    model, _ = variants(MODELS, BUDGET)
    assert trials.plan([model], [0], run, folder)[0].finished
    assert not trials.plan([model], [1], run, folder)[0].finished
    longer, _ = variants(MODELS, BUDGET | {"finetune": 2})
    assert not trials.plan([longer], [0], run, folder)[0].finished
    monkeypatch.setattr(trials.fingerprint, "of_code", lambda *_: "edited")
    assert not trials.plan([model], [0], run, folder)[0].finished


def test_what_differs_in_fine_tuning_only_shares_a_pre_training(tmp_path):
    run = FinishedRun(BASE, tmp_path, tmp_path, tmp_path)
    found = variants(
        "bert,same=model.architecture:bert,model.tower_dims:[4],training.finetune.epochs:9,"
        "tuned=model.architecture:bert,training.finetune.tune:classifier,model.heads:ple,"
        "fewer=model.architecture:bert,tasks:[click],"
        "blind=model.architecture:bert,tasks.click.exclude:[city],"
        "wider=model.architecture:bert,model.hidden_dim:32,"
        "longer=model.architecture:bert,training.pretrain.epochs:7,"
        "none=model.architecture:bert,training.pretrain.epochs:0"
    )
    of = {(t.model, t.seed): t.pretraining for t in trials.plan(found, [0, 1], run, tmp_path)}
    assert of["bert", 0] == of["same", 0] == of["tuned", 0]
    assert of["bert", 0] == of["fewer", 0]
    # The encoder mustn't read what a task mustn't know.
    others = [of["bert", 0], of["blind", 0], of["bert", 1], of["wider", 0], of["longer", 0]]
    assert len(set(others)) == len(others)
    assert of["none", 0] is None


def test_cpu_seconds_go_on_after_a_kill(tmp_path):
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"cpu_seconds": 1000.0}))
    with cost.Meter(path) as meter:
        sum(i * i for i in range(100_000))
    assert 1000.0 < meter.cpu_seconds < 1010.0
    assert 1000.0 < json.loads(path.read_text())["cpu_seconds"] <= meter.cpu_seconds
