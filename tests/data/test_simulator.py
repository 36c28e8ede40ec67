"""The simulator: deterministic, as described, and honest about the ceiling."""

import hashlib
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data import simulator
from data.simulator import oracle, population, tables
from data.spec import load_spec, parse_spec

NUM_USERS = 2048
IMPRESSION_TASKS = ("click", "conversion", "credit_pay")
PROFILE_TASKS = ("high_spender", "night_owl")


def read_events(path: pathlib.Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(path.glob("events-*.parquet"))])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> pathlib.Path:
    return simulator.simulate(tmp_path_factory.mktemp("sim") / "data", num_users=NUM_USERS)


@pytest.fixture(scope="module")
def events(simulated) -> pa.Table:
    return read_events(simulated)


@pytest.fixture(scope="module")
def users(simulated) -> pa.Table:
    return pq.read_table(simulated / "users.parquet")


def test_spec_file_is_what_the_generator_gives():
    path = pathlib.Path(simulator.__file__).parents[1] / "specs" / "simulator.yaml"
    assert yaml.safe_load(path.read_text()) == simulator.simulator_spec()


def test_few_labels_is_the_simulators_spec_with_another_model_and_training():
    root = pathlib.Path(simulator.__file__).parents[2]
    few_labels = load_spec(root / "benchmarks" / "quality" / "few_labels.yaml")
    own = {"name", "model", "training"}
    assert few_labels.model_dump(exclude=own) == load_spec("simulator").model_dump(exclude=own)


def test_columns_are_those_the_spec_reads(events, users):
    spec = load_spec("simulator")
    per_event = {c.source_column for c in spec.channels if c.scope != "context"} - {"$interval"}
    per_user = {c.source_column for c in spec.scope("context")}
    for task in spec.tasks:
        (per_event if task.per == "impression" else per_user).update([task.label, task.oracle])
    assert set(events.column_names) == per_event | {"user_id", "time_ms"}
    assert set(users.column_names) == per_user | {"user_id"}


def test_values_fit_the_spec(events):
    for channel in load_spec("simulator").scope("sequence"):
        if channel.source_column == "$interval":
            continue
        column = events[channel.source_column]
        missing = column.null_count / len(column)
        assert missing < 0.9 * channel.max_missing
        if channel.kind == "category":
            assert column.type == pa.string()
            if channel.values:
                assert set(column.drop_null().unique().to_pylist()) == set(channel.values)
        elif channel.kind == "dense":
            assert np.isfinite(column.drop_null().to_numpy()).all()


def test_events_are_ordered_by_user_and_time(events):
    user, time = events["user_id"].to_numpy(), events["time_ms"].to_numpy()
    same = np.diff(user) == 0
    assert (np.diff(user) >= 0).all()
    assert (np.diff(time)[same] >= 0).all()
    hour = (time // 3_600_000) % 24
    assert events["hour"].to_pylist() == [str(h) for h in hour]


def test_same_seed_same_bytes_and_another_seed_other_events(tmp_path):
    def digest(name: str, seed: int) -> list[str]:
        out = simulator.simulate(tmp_path / name, num_users=300, num_items=64, seed=seed)
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.glob("*.parquet"))]

    assert digest("a", 3) == digest("b", 3)
    assert not set(digest("a", 3)) & set(digest("c", 4))


def test_a_user_does_not_depend_on_files_users_or_channels(tmp_path):
    few = simulator.simulate(tmp_path / "few", num_users=700, num_items=64)
    many = simulator.simulate(
        tmp_path / "many",
        num_users=1300,
        num_items=64,
        num_channels=simulator.CORE_CHANNELS + 5,
        users_per_file=population.BLOCK,
    )
    assert len(list(few.glob("events-*-of-00001.parquet"))) == 1
    assert len(list(many.glob("events-*-of-00006.parquet"))) == 6
    expected, found = read_events(few), read_events(many).select(read_events(few).column_names)
    assert found.slice(0, len(expected)).equals(expected)
    assert found["user_id"].to_numpy()[len(expected)] == 700
    users = pq.read_table(many / "users.parquet")
    assert users["user_id"].to_pylist() == list(range(1300))
    assert users.slice(0, 700).equals(pq.read_table(few / "users.parquet"))


def test_activity_has_the_asked_mean(events):
    activity = np.bincount(events["user_id"].to_numpy(), minlength=NUM_USERS)
    assert activity.min() >= 4
    assert activity.mean() == pytest.approx(48, abs=4 * activity.std() / np.sqrt(NUM_USERS))


def test_items_are_zipf(events):
    counts = np.sort(np.bincount(events["product"].to_numpy()))[::-1]
    rank = np.arange(50, 1000)
    slope = np.polyfit(np.log(rank + 10), np.log(counts[50:1000]), 1)[0]
    # proposals follow rank^-0.8; picking by taste spreads the counts around it
    assert -1.3 < slope < -0.6
    assert counts[:200].sum() > 0.25 * counts.sum()


@pytest.mark.parametrize(
    "channel", ["location", "device", "merchant", "category", "spm", "coupon", "age_band"]
)
def test_missing_rates(events, users, channel):
    column = (users if channel == "age_band" else events)[channel]
    rate = population.MISSING[channel]
    error = np.sqrt(rate * (1 - rate) / len(column))
    assert column.null_count / len(column) == pytest.approx(rate, abs=4 * error)


def test_outcomes_exist_only_where_they_can(events):
    offer = np.array(events["event"].to_pylist()) == "impression"
    click = np.array(events["click"].to_pylist())
    conversion = np.array(events["conversion"].to_pylist())
    assert ((click != None) == offer).all()  # noqa: E711
    assert ((conversion != None) == (click == "1")).all()  # noqa: E711
    paid = ~offer | (conversion == "1")
    for channel in ("amount", "payment_tool"):
        assert not events[channel].is_valid().to_numpy()[~paid].any()
    credit = events["credit_pay_label"].is_valid().to_numpy()
    assert not credit[offer].any()


def test_labels_agree_with_the_history_and_start_late(events):
    start = population.START_MS + population.LABELS_FROM_DAY * 86_400_000
    late = events["time_ms"].to_numpy() >= start
    for task in ("click", "conversion"):
        label = events[f"{task}_label"].to_numpy()
        present = ~np.isnan(label)
        outcome = np.array([{"0": 0.0, "1": 1.0}.get(v, np.nan) for v in events[task].to_pylist()])
        assert (label[present] == outcome[present]).all()
        assert late[present].all()
        lost = 1 - present.sum() / (late & ~np.isnan(outcome)).sum()
        assert lost == pytest.approx(population.LABEL_LOST, abs=0.01)


@pytest.mark.parametrize("task", IMPRESSION_TASKS + PROFILE_TASKS)
def test_labels_are_drawn_with_the_oracle_probability(events, users, task):
    table = events if task in IMPRESSION_TASKS else users
    label, p = (table[f"{task}_{column}"].drop_null().to_numpy() for column in ("label", "oracle"))
    assert set(label) == {0.0, 1.0}
    bins = np.digitize(p, [0.2, 0.4, 0.6, 0.8])
    for b in [bins >= 0, *(bins == i for i in range(5))]:
        error = np.sqrt((p[b] * (1 - p[b])).sum()) / b.sum()
        assert label[b].mean() == pytest.approx(p[b].mean(), abs=4 * error)


def test_oracle_metrics(simulated, users):
    spec = load_spec("simulator")
    metrics = simulator.oracle_metrics(simulated, spec)
    assert set(metrics) == {*IMPRESSION_TASKS, *PROFILE_TASKS}
    for name, m in metrics.items():
        assert 0.78 < m["auc"] < 0.92
        floor = spec.task(name).thresholds.min_auc
        assert floor == pytest.approx(0.5 + 0.6 * (m["auc"] - 0.5), abs=0.02)
        assert 0.3 < m["positives"] / m["examples"] < 0.6
    assert all(metrics[t]["gauc"] is None for t in PROFILE_TASKS)
    assert 0.75 < metrics["click"]["gauc"] < metrics["click"]["auc"]
    assert metrics["night_owl"]["examples"] == NUM_USERS - users["night_owl_label"].null_count


def test_grouped_auc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    groups = rng.integers(6, size=80)
    labels = rng.integers(2, size=80)
    labels[groups == 4] = 1
    scores = rng.integers(5, size=80) / 5
    auc, size = oracle.grouped_auc(groups, labels, scores)
    for g in range(6):
        positive = scores[(groups == g) & (labels == 1)]
        negative = scores[(groups == g) & (labels == 0)]
        assert size[g] == len(positive) + len(negative)
        if not len(negative):
            assert np.isnan(auc[g])
            continue
        difference = positive[:, None] - negative[None, :]
        assert auc[g] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_click_and_conversion_are_in_conflict():
    """Curiosity: for the same impressions, what is clicked more converts less."""
    world = population.draw_world(seed=0, num_items=2000)
    logits = []
    for block in range(8):
        users, rng = population.draw_users(world, block, mean_events=48)
        events = population.draw_events(world, users, rng)
        p = np.stack([events.p_click, events.p_conversion], axis=1)[~events.payment]
        logits.append(np.log(p / (1 - p)))
    correlation = np.corrcoef(np.concatenate(logits).T)[0, 1]
    assert -0.5 < correlation < -0.3


def test_some_users_drift_and_others_do_not():
    world = population.draw_world(seed=0, num_items=2000)
    users, rng = population.draw_users(world, 0, mean_events=48)
    events = population.draw_events(world, users, rng)
    first = np.searchsorted(events.owner, np.arange(population.BLOCK))
    last = np.searchsorted(events.owner, np.arange(population.BLOCK), side="right") - 1
    moved = np.abs(events.taste[last] - events.taste[first]).max(axis=1)
    drifts = users.types[:, 0] != users.types[:, 1]
    assert 0.15 < drifts.mean() < 0.4
    assert (moved[~drifts] < 1e-9).all()
    assert np.median(moved[drifts]) > 1.0


def test_payments_reveal_taste_and_impressions_hardly():
    world = population.draw_world(seed=0, num_items=2000)
    users, rng = population.draw_users(world, 0, mean_events=48)
    events = population.draw_events(world, users, rng)
    fit = (events.taste * world.place[events.product]).sum(axis=1)
    assert fit[events.payment].mean() > 1.5
    assert fit[~events.payment].mean() < 1.0


def test_any_number_of_channels(tmp_path):
    count = simulator.CORE_CHANNELS + 18
    out = simulator.simulate(tmp_path / "wide", num_users=300, num_items=64, num_channels=count)
    spec = parse_spec(simulator.simulator_spec(num_channels=count, num_items=64))
    sequence = spec.scope("sequence")
    assert len(sequence) == count
    events = read_events(out)
    kinds = {"category": pa.string(), "dense": pa.float32(), "id": pa.int64()}
    extras = [c for c in sequence if c.name.startswith("extra_")]
    assert [c.kind for c in extras[:3]] == ["category", "dense", "id"]
    for channel in extras:
        column = events[channel.source_column]
        assert column.type == kinds[channel.kind]
        missing = column.null_count / len(column)
        assert missing == pytest.approx(tables.EXTRA_MISSING, abs=0.02)
        assert len(column.unique()) > 4


def test_writes_a_block_at_a_time(simulated):
    file = pq.ParquetFile(next(simulated.glob("events-00000-*")))
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert len(groups) == NUM_USERS / population.BLOCK
    assert max(groups) < 2 * 48 * population.BLOCK


def test_progress_counts_users(tmp_path):
    seen = []
    simulator.simulate(
        tmp_path / "p", num_users=600, num_items=64, progress=lambda *done: seen.append(done)
    )
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_a_failed_run_leaves_nothing(tmp_path):
    def fail(done: int, total: int) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        simulator.simulate(tmp_path / "x", num_users=600, num_items=64, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_the_same_simulation_is_not_written_twice_and_nothing_is_overwritten(tmp_path):
    out = simulator.simulate(tmp_path / "x", num_users=10, num_items=64)
    assert json.loads((out / "simulation.json").read_text())["num_users"] == 10
    before = (out / "users.parquet").stat().st_mtime_ns
    simulator.simulate(out, num_users=10, num_items=64)
    assert (out / "users.parquet").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another simulation.*Remove it or choose"):
        simulator.simulate(out, num_users=11, num_items=64)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="isn't a simulation"):
        simulator.simulate(tmp_path / "mine", num_users=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "num_users is 0, must be at least 1"),
        ({"num_items": 3}, "num_items is 3, must be at least 16"),
        ({"num_channels": 2}, "num_channels is 2, must be at least 15"),
        ({"mean_events": float("nan")}, "mean_events is nan, must be at least 5"),
        ({"seed": -1}, "seed is -1"),
        ({"users_per_file": 300}, "users_per_file is 300, must be a multiple of 256"),
        ({"num_users": 0, "num_items": 0}, "num_users is 0.*; num_items is 0"),
    ],
)
def test_bad_arguments_give_one_clear_error(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        simulator.simulate(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_spec_generator_refuses_too_few_channels():
    with pytest.raises(ValueError, match="num_channels is 3, must be at least 15"):
        simulator.simulator_spec(num_channels=3)


def test_oracle_metrics_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="simulate first"):
        simulator.oracle_metrics(tmp_path, load_spec("simulator"))
    with pytest.raises(ValueError, match="no binary task of spec 'kuairand_pure' has an oracle"):
        simulator.oracle_metrics(tmp_path, load_spec("kuairand_pure"))
