"""Files -> TFRecords through Beam: nothing lost, nothing twice, legible failures."""

from __future__ import annotations

import gzip
import json
import pathlib

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from data import ingestion
from data.columns import SourceError
from data.ingestion import IngestionError
from data.spec import Spec, load_spec, parse_spec
from tests.data.small import EVENT_TYPES, USER_TYPES, raw_table, small_spec

KUAIRAND = pathlib.Path(__file__).parents[3] / "shared" / "data" / "kuairand-pure"


def ingest(spec: Spec, data: pathlib.Path, output: pathlib.Path, num_shards: int = 0) -> dict:
    options = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]
    splits = {split: str(output / f"Split-{split}") for split in ingestion.SPLITS}
    return ingestion.ingest(
        beam.Pipeline(argv=options), spec, str(data), splits, str(output), str(output / "dead"),
        num_shards,
    )  # fmt: skip


def stored(output: pathlib.Path) -> dict[str, list[tf.train.Example]]:
    return {
        split: [
            tf.train.Example.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(
                tf.io.gfile.glob(str(output / f"Split-{split}" / "*.gz")), compression_type="GZIP"
            )
        ]
        for split in ingestion.SPLITS
    }


def serialized(output: pathlib.Path) -> list[bytes]:
    examples = sum(stored(output).values(), [])
    return sorted(example.SerializeToString(deterministic=True) for example in examples)


def values(example: tf.train.Example, name: str) -> list:
    feature = example.features.feature[name]
    return list(getattr(feature, feature.WhichOneof("kind")).value)


def dead_letters(output: pathlib.Path) -> list[dict]:
    lines = (output / "dead" / "ingestion.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def write_data(folder: pathlib.Path, num_users: int = 40, num_events: int = 12) -> pathlib.Path:
    """Two event files, with each user's events in both, and a user file."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"user_id": f"u{u}", "time_ms": 10 * e, "item": e, "tags": ["x"] * (e % 3), "click": "1"}
        for u in range(num_users)
        for e in range(num_events)
    ]
    for i in range(2):
        table = raw_table(rows[i::2], EVENT_TYPES)
        pyarrow.parquet.write_table(table, folder / f"events-{i}.parquet")
    users = [{"user_id": f"u{u}", "city": "rome", "level": "gold"} for u in range(num_users)]
    pyarrow.parquet.write_table(raw_table(users, USER_TYPES), folder / "users.parquet")
    return folder


def test_every_event_once_whatever_the_shards(tmp_path):
    data = write_data(tmp_path / "data")
    spec = small_spec(sequence={"max_length": 4, "window": 16})
    summaries = [ingest(spec, data, tmp_path / f"out{n}", n) for n in (1, 7)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["events"] == 480 and summaries[0]["users"] == 40
    assert summaries[0]["stored_per_event"] == 1.0 and summaries[0]["dead_letters"] == 0
    one, many = (serialized(tmp_path / f"out{n}") for n in (1, 7))
    assert one == many and len(one) == 40
    example = tf.train.Example.FromString(one[0])
    assert values(example, "sequence_item") == list(range(12))
    assert values(example, "target_position") == [*range(12), 12]
    assert json.loads((tmp_path / "out1" / "ingestion.json").read_text()) == summaries[0]


def test_splits_hold_what_they_say(tmp_path):
    data = write_data(tmp_path / "data")
    summary = ingest(small_spec(), data, tmp_path / "out")
    examples = stored(tmp_path / "out")
    held = {s: {values(e, "user_id")[0] for e in es} for s, es in examples.items()}
    assert not held["train"] & held["eval"]
    for code, split in enumerate(ingestion.SPLITS):
        assert {v for e in examples[split] for v in values(e, "target_split")} == {code}
        impressions = sum(values(e, "target_per_user").count(0) for e in examples[split])
        assert impressions == summary["targets"]["click"][split]
        assert len(examples[split]) == summary["instances"][split]
    assert all(values(e, "train_length") == [0] for e in examples["eval"])


def test_duplicates_across_files_are_dropped_and_counted(tmp_path):
    data = write_data(tmp_path / "data")
    table = pyarrow.parquet.read_table(data / "events-0.parquet")
    pyarrow.parquet.write_table(table.slice(0, 25), data / "events-9.parquet")
    summary = ingest(small_spec(), data, tmp_path / "out", num_shards=3)
    assert summary["duplicates"]["events"] == 25 and summary["events"] == 480


def test_dead_letters_are_written_and_counted(tmp_path):
    data = write_data(tmp_path / "data")
    bad = raw_table([{"user_id": "u1", "item": -5}, {"user_id": None, "item": 1}], EVENT_TYPES)
    pyarrow.parquet.write_table(bad, data / "events-bad.parquet")
    other = raw_table([{"user_id": "u3", "city": "oslo"}], USER_TYPES)
    pyarrow.parquet.write_table(other, data / "users-more.parquet")
    summary = ingest(small_spec(), data, tmp_path / "out", num_shards=2)
    letters = dead_letters(tmp_path / "out")
    assert summary["dead_letters"] == len(letters) == 3
    assert summary["events"] == 480 and summary["users"] == 40
    found = {(pathlib.Path(d["file"]).name, d["row"], d["reason"]) for d in letters}
    assert found == {
        ("events-bad.parquet", 1, "item: negative id"),
        ("events-bad.parquet", 2, "user_id: no user id"),
        ("users.parquet", 4, "another row of the same user"),
    } or found == {
        ("events-bad.parquet", 1, "item: negative id"),
        ("events-bad.parquet", 2, "user_id: no user id"),
        ("users-more.parquet", 1, "another row of the same user"),
    }


def test_too_many_dead_letters_fail_the_run(tmp_path):
    data = write_data(tmp_path / "data")
    bad = raw_table([{"user_id": None}] * 100, EVENT_TYPES)
    pyarrow.parquet.write_table(bad, data / "events-bad.parquet")
    said = r"100 of 620 rows.*max_dead_letter_fraction 0\.01: see .*/out/dead/ingestion\.jsonl"
    with pytest.raises(IngestionError, match=said):
        ingest(small_spec(), data, tmp_path / "out")
    assert len(dead_letters(tmp_path / "out")) == 100


@pytest.mark.parametrize("rows", [9_000, 90_000])  # before and past the header's first MB
def test_a_file_cut_short_fails_the_run(tmp_path, rows):
    data = write_data(tmp_path / "data")
    header = ",".join(EVENT_TYPES)
    text = "\n".join([header, *["u1,1,2,,,,,1,,,"] * rows]).encode()
    (data / "events-cut.csv.gz").write_bytes(gzip.compress(text)[:-9])
    with pytest.raises(SourceError, match=r"events-cut\.csv\.gz: can't be read to its end"):
        ingest(small_spec(), data, tmp_path / "out")


def test_a_type_that_varies_between_files_fails_the_run(tmp_path):
    data = write_data(tmp_path / "data")
    types = EVENT_TYPES | {"place": pa.int64()}
    table = raw_table([{"user_id": "u1", "place": 1}], types)
    pyarrow.parquet.write_table(table, data / "events-int.parquet")
    with pytest.raises(SourceError, match=r"column 'place' has different types.*int64, string"):
        ingest(small_spec(), data, tmp_path / "out")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "user", "eval_fraction": 1e-9}, "split 'eval' is empty.*eval_fraction"),
        ({"by": "time", "at": "2030-01-01"}, r"split 'eval' is empty.*Change split\.at"),
        ({"by": "time", "at": "1960-01-01"}, r"split 'train' is empty.*Change split\.at"),
    ],
)
def test_an_empty_split_names_split_and_key(tmp_path, split, message):
    data = write_data(tmp_path / "data")
    raw = small_spec(split=split).model_dump(mode="json")
    raw["tasks"] = [t for t in raw["tasks"] if t["per"] == "impression"]
    with pytest.raises(IngestionError, match=message):
        ingest(parse_spec(raw), data, tmp_path / "out")


def test_a_task_without_a_label_on_one_side_names_the_task(tmp_path):
    """The per-user labels keep the split from being empty; the impressions' task still is."""
    data = write_data(tmp_path / "data")
    spec = small_spec(split={"by": "time", "at": "2030-01-01", "eval_fraction": 0.4})
    with pytest.raises(
        IngestionError, match=r"task 'click' has no label in split 'eval'.*split\.at"
    ):
        ingest(spec, data, tmp_path / "out")


def test_no_events_at_all(tmp_path):
    data = write_data(tmp_path / "data", num_users=0)
    with pytest.raises(IngestionError, match="no events in the input"):
        ingest(small_spec(), data, tmp_path / "out")


@pytest.mark.parametrize(("of", "events", "labelled"), [("events", 80, 80), ("targets", 480, 80)])
def test_a_domain_is_all_there_is_or_all_that_is_predicted(tmp_path, of, events, labelled):
    """40 users; items 3 and 5 (numbers in the file, text in the spec) are the domain."""
    source = {"format": "tabular", "path": "events*", "users": "users*"}
    source["where"] = {"column": "item", "values": ["3", "5"], "of": of}
    spec = small_spec(source=source, sequence={"max_length": 4, "window": 16})
    summary = ingest(spec, write_data(tmp_path / "data"), tmp_path / "out")
    assert summary["events"] == events and summary["rows"]["events"] == 480
    assert sum(summary["targets"]["click"].values()) == labelled
    assert sum(summary["targets"]["vip"].values()) == 40
    seen = [3, 5] if of == "events" else list(range(12))
    for example in sum(stored(tmp_path / "out").values(), []):
        assert values(example, "sequence_item") == seen
        assert values(example, "candidate_item")[:2] == [3, 5]


def test_an_empty_domain_is_named(tmp_path):
    source = {"format": "tabular", "path": "events*", "users": "users*"}
    source["where"] = {"column": "shop", "values": ["s1"]}
    with pytest.raises(IngestionError, match="'shop' is never one of \\['s1'\\]"):
        ingest(small_spec(source=source), write_data(tmp_path / "data"), tmp_path / "out")


def test_an_unwritable_output_is_named(tmp_path):
    data = write_data(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(IngestionError, match="output folder .*/file/out can't be written to"):
        ingest(small_spec(), data, tmp_path / "file" / "out")


def test_users_without_a_row_and_rows_without_a_user(tmp_path):
    """A user the table doesn't know has missing context; a user without events stands alone."""
    data = write_data(tmp_path / "data", num_users=20)
    users = [{"user_id": f"u{u}", "city": "rome", "level": "gold"} for u in range(1, 25)]
    pyarrow.parquet.write_table(raw_table(users, USER_TYPES), data / "users.parquet")
    summary = ingest(small_spec(sequence={"max_length": 4, "window": 16}), data, tmp_path / "out")
    assert summary["users"] == 25
    examples = {values(e, "user_id")[0]: e for s in stored(tmp_path / "out").values() for e in s}
    assert values(examples[b"u0"], "context_city") == [b""]
    assert np.isnan(values(examples[b"u0"], "label_vip")).all()
    assert values(examples[b"u24"], "sequence_length") == [0]
    assert values(examples[b"u24"], "label_vip") == [1.0]


@pytest.mark.slow
def test_kuairand_pure(tmp_path):
    """Real data: its README's counts, each event stored at most 1.3 times."""
    if not KUAIRAND.exists():
        pytest.skip(f"no {KUAIRAND}")
    summary = ingest(load_spec("kuairand_pure"), KUAIRAND, tmp_path / "out")
    clicks = summary["targets"]["click"]
    assert clicks["train"] + clicks["eval"] == 222_869
    likes = summary["targets"]["like"]
    assert likes["eval"] == clicks["eval"] and likes["train"] == clicks["train"] + 789_857
    assert summary["duplicates"]["events"] == 5_460
    assert summary["dead_letters"] == 0
    assert summary["stored_per_event"] <= 1.3
    assert summary["users"] == 27_285
