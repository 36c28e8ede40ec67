"""Reading files: every format, every kind of bad input, nothing lost."""

from __future__ import annotations

import gzip
import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data import events, sources
from data.columns import IDENTITY, ORDER, SourceError, event_columns, user_columns
from data.identity import row_identity
from data.instances import build_instances
from data.sources.kuairand import COUNTED
from data.spec import Spec, load_spec, parse_spec
from tests.data.small import EVENT_TYPES, USER_TYPES, raw_table, small_spec

EVENT_HEADER = "user_id,time_ms,item,shop,place,tags,price,click,click_p,stars,spend"
GOOD = "ann,1000,7,s1,home,x|y,1.5,1,0.5,a,2.5"


def read_all(spec: Spec, root: pathlib.Path, role: str = "events"):
    """All rows of a role as one table, and the dead letters."""
    tables, letters = [], []
    for file in sources.find(spec, str(root)):
        if (file.role == "users") != (role == "users"):
            continue
        columns = user_columns(spec) if role == "users" else event_columns(spec)
        for chunk in sources.read(file, spec):
            table, dead = events.conform(chunk, file, columns)
            tables.append(table)
            letters += dead
    return pa.concat_tables(tables), letters


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "users.csv").write_text("user_id,city,age,level\nann,rome,30,gold\n")
    return tmp_path


def csv(folder: pathlib.Path, *lines: str, header: str = EVENT_HEADER) -> pathlib.Path:
    path = folder / "events.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


# --- tabular -------------------------------------------------------------------------------


def test_csv_is_cast_by_the_spec(folder):
    csv(folder, GOOD, "bo,,,,,,,,,,")
    table, letters = read_all(small_spec(), folder)
    assert not letters
    first, second = table.drop([ORDER, IDENTITY]).to_pylist()
    assert first == {
        "user_id": "ann", "time_ms": 1000, "item:int": 7, "shop:string": "s1",
        "place:category": "home", "tags:category[]": ["x", "y"], "price:dense": 1.5,
        "click:category": "1", "label_click": 1.0, "oracle_click": 0.5, "label_stars": 0.0,
        "label_spend": 2.5,
    }  # fmt: skip
    assert second.pop("user_id") == "bo" and second.pop("tags:category[]") == []
    assert set(second.values()) == {None}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ann,1000,7", "3 fields instead of 11"),
        (GOOD + ",more", "12 fields instead of 11"),
        (GOOD.replace("1.5", "cheap"), "price: not a number"),
        (GOOD.replace("1.5", "NaN"), "price: not a finite number"),
        (GOOD.replace("1.5", "-inf"), "price: not a finite number"),
        (GOOD.replace("1.5", "1e39"), "price: not a finite number"),
        (GOOD.replace("1.5", "1e999"), "price: not a finite number"),
        (GOOD.replace(",7,", ",seven,"), "item: not an integer"),
        (GOOD.replace(",7,", ",99999999999999999999,"), "item: not an integer"),
        (GOOD.replace(",7,", ",-7,"), "item: negative id"),
        (GOOD.replace("1000", "noon"), "time_ms: not integer milliseconds"),
        (GOOD.replace("1000", "1000.5"), "time_ms: not integer milliseconds"),
        (GOOD.replace(",1,0.5", ",2,0.5"), "click: label of binary task 'click' is neither"),
        (GOOD.replace(",1,0.5", ",yes,0.5"), "click: not a number"),
        (GOOD.replace("0.5", "1.5"), "click_p: not a probability"),
        (GOOD.replace(",a,", ",z,"), "stars: label of task 'stars' is none of its classes"),
        (GOOD.replace("2.5", "inf"), "spend: not a finite number"),
        (GOOD.replace("ann", ""), "user_id: no user id"),
    ],
)
def test_a_malformed_csv_row_is_a_dead_letter(folder, line, reason):
    """With its place, its reason and its text; the rows around it are kept."""
    path = csv(folder, GOOD, line, GOOD.replace("ann", "bo"))
    table, (letter,) = read_all(small_spec(), folder)
    assert table["user_id"].to_pylist() == ["ann", "bo"]
    assert (letter.file, letter.row) == (str(path), 3)
    assert reason in letter.reason
    assert letter.raw == line


@pytest.mark.parametrize(
    ("column", "value", "read"),
    [
        ("item", "1234567890123456789", 1234567890123456789),  # 19 digits, as snowflake ids have
        ("item", "9223372036854775807", 2**63 - 1),
        ("time_ms", "12.0", 12),
        ("price", "1e-0003", 0.001),
    ],
)
def test_a_value_reads_the_same_beside_a_malformed_one(folder, column, value, read):
    fields = dict(zip(EVENT_HEADER.split(","), GOOD.split(","), strict=True))
    csv(folder, ",".join((fields | {column: value}).values()), *[GOOD.replace("1.5", "+1.5")] * 2,
        GOOD.replace(",7,", ",seven,"), GOOD.replace("1000", "noon"))  # fmt: skip
    table, letters = read_all(small_spec(), folder)
    assert [letter.row for letter in letters] == [3, 4, 5, 6]
    (name,) = (n for n in table.column_names if n.split(":")[0] == column)
    assert table[name].to_pylist() == [pytest.approx(read)]


def test_a_file_of_malformed_rows_only(folder):
    csv(folder, "short", "shorter")
    table, letters = read_all(small_spec(), folder)
    assert table.num_rows == 0 and [letter.row for letter in letters] == [2, 3]


def test_a_column_named_twice_is_an_error(folder):
    csv(folder, GOOD + ",8", header=EVENT_HEADER + ",item")
    with pytest.raises(SourceError, match=r"events\.csv: more than one column is named item"):
        sources.find(small_spec(), str(folder))


def test_rows_keep_their_line_numbers_past_malformed_ones(folder):
    lines = [GOOD if i % 3 else "short" for i in range(30)]
    csv(folder, *lines)
    table, letters = read_all(small_spec(), folder)
    rows = table[ORDER].to_numpy() & ((1 << 40) - 1)
    assert rows.tolist() == [i + 2 for i in range(30) if i % 3]
    assert [letter.row for letter in letters] == [i + 2 for i in range(30) if not i % 3]


def test_quotes_and_separators_inside_fields(folder):
    csv(folder, 'ann,1000,7,"s,1","say ""hi""",x|y,1.5,1,0.5,a,2.5')
    table, letters = read_all(small_spec(), folder)
    assert not letters
    assert table["shop:string"][0].as_py() == "s,1"
    assert table["place:category"][0].as_py() == 'say "hi"'


def test_bytes_that_are_not_utf8_are_a_dead_letter(folder):
    path = csv(folder, GOOD)
    path.write_bytes(path.read_bytes() + GOOD.encode().replace(b"home", b"caf\xe9") + b"\n")
    table, (letter,) = read_all(small_spec(), folder)
    assert table.num_rows == 1
    assert letter.row == 3 and "place: not UTF-8" in letter.reason


def test_a_gzip_that_ends_early_is_one_error(folder):
    text = "\n".join([EVENT_HEADER, *[GOOD] * 5000]).encode()
    (folder / "events.csv.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(SourceError, match=r"events\.csv\.gz: can't be read.*[Tt]runcated"):
        read_all(small_spec(), folder)


def test_a_missing_column_names_file_column_and_use(folder):
    csv(folder, "ann,1000", header="user_id,time_ms,shop,place,tags,price,click_p,stars,spend")
    with pytest.raises(SourceError) as error:
        sources.find(small_spec(), str(folder))
    for part in (
        "events.csv: missing column 'item' (sequence channel 'item', candidate channel 'item')",
        "'click' (sequence channel 'click', label of task 'click')",
        "Columns found: user_id, time_ms, shop",
    ):
        assert part in str(error.value)


def test_no_files_and_unknown_kinds(folder):
    with pytest.raises(SourceError, match="source.path: no files match .*/events"):
        sources.find(small_spec(), str(folder))
    (folder / "events.xlsx").write_text("")
    with pytest.raises(SourceError, match="unknown kind of file"):
        sources.find(small_spec(), str(folder))


def test_context_without_a_user_table(folder):
    csv(folder, GOOD)
    spec = small_spec(source={"format": "tabular", "path": "events*"})
    with pytest.raises(SourceError, match="source.users: no user table.*channel 'city'"):
        sources.find(spec, str(folder))


def test_parquet_keeps_its_types_and_csv_reads_the_same(folder, tmp_path):
    row = {"user_id": "ann", "time_ms": 1000, "item": 7, "shop": "s1", "place": "home",
           "tags": ["x", "y"], "price": 1.5, "click": "1", "click_p": 0.5, "stars": "a",
           "spend": 2.5}  # fmt: skip
    pyarrow.parquet.write_table(raw_table([row], EVENT_TYPES), folder / "events.parquet")
    parquet, _ = read_all(small_spec(), folder)
    (folder / "events.parquet").unlink()
    csv(folder, GOOD)
    text, _ = read_all(small_spec(), folder)
    drop = [ORDER, IDENTITY]
    assert parquet.drop(drop).equals(text.drop(drop))


def test_parquet_category_turned_to_integers_stays_integers(folder):
    types = EVENT_TYPES | {"place": pa.int32()}
    table = raw_table([{"user_id": "ann", "time_ms": 1, "place": 3}], types)
    pyarrow.parquet.write_table(table, folder / "events.parquet")
    read, letters = read_all(small_spec(), folder)
    assert not letters and read.schema.field("place:category").type == pa.int64()


def test_parquet_values_are_checked_too(folder):
    rows = [
        {"user_id": "ann", "time_ms": 1, "item": 1, "price": float("nan")},
        {"user_id": "ann", "time_ms": 2, "item": -1},
        {"user_id": None, "time_ms": 3, "item": 1},
        {"user_id": "ann", "time_ms": 4, "item": 1},
    ]
    pyarrow.parquet.write_table(raw_table(rows, EVENT_TYPES), folder / "events.parquet")
    table, letters = read_all(small_spec(), folder)
    assert table["time_ms"].to_pylist() == [4]
    assert [(d.row, d.reason) for d in letters] == [
        (1, "price: not a finite number"),
        (2, "item: negative id"),
        (3, "user_id: no user id"),
    ]
    assert json.loads(letters[1].raw)["item"] == -1


def test_a_column_that_no_reading_fits_is_an_error(folder):
    types = EVENT_TYPES | {"place": pa.struct([("x", pa.int64())])}
    table = raw_table([{"user_id": "ann", "place": {"x": 1}}], types)
    pyarrow.parquet.write_table(table, folder / "events.parquet")
    with pytest.raises(SourceError, match="column 'place' has type struct.*channel 'place'"):
        read_all(small_spec(), folder)


def test_arrow_encodings_read_as_what_they_encode(folder):
    table = pa.table(
        {
            "user_id": pa.array([12, 13], pa.uint32()),
            "time_ms": pa.array([1, 2], pa.timestamp("s")),
            "item": pa.array([1.0, None]),
            "shop": pa.array(["s", None]).dictionary_encode(),
            "place": pa.array([True, None]),
            "tags": pa.array([["x", None, ""], None], pa.large_list(pa.large_string())),
            "price": pa.array([3, None], pa.int16()),
            "click": pa.array([True, None]),
            "click_p": pa.nulls(2),
            "stars": pa.array(["b", None], pa.large_string()),
            "spend": pa.array([1, None], pa.int8()),
        }
    )
    pyarrow.parquet.write_table(table, folder / "events.parquet")
    read, letters = read_all(small_spec(), folder)
    assert not letters
    first, second = read.drop([ORDER, IDENTITY]).to_pylist()
    assert first == {
        "user_id": "12", "time_ms": 1000, "item:int": 1, "shop:string": "s",
        "place:category": "1", "tags:category[]": ["x"], "price:dense": 3.0,
        "click:category": "1", "label_click": 1.0, "oracle_click": None, "label_stars": 1.0,
        "label_spend": 1.0,
    }  # fmt: skip
    assert second["tags:category[]"] == [] and second["item:int"] is None


def test_jsonl_with_bad_lines(folder):
    row = {"user_id": "ann", "time_ms": 1, "item": 1, "place": "2020-01-01", "tags": ["x"],
           "price": 1.5, "click": 1}  # fmt: skip
    lines = [
        json.dumps(row),
        '{"user_id": "ann", ',
        "",
        json.dumps(row | {"price": "cheap"}),
        "[1, 2]",
        json.dumps(row | {"time_ms": 2, "tags": [], "spend": 1, "shop": "s", "stars": "a",
                          "click_p": 0.5}),
    ]  # fmt: skip
    (folder / "events.jsonl").write_text("\n".join(lines))
    table, letters = read_all(small_spec(), folder)
    assert table["time_ms"].to_pylist() == [1, 2]
    assert table["place:category"].to_pylist() == ["2020-01-01"] * 2
    assert [(d.row, d.reason.split(":")[0]) for d in letters] == [
        (2, "not JSON"),
        (4, "price"),
        (5, "not a JSON object"),
    ]


@pytest.mark.parametrize("value", ['1, "price": 2', "1e999"])
def test_jsonl_that_only_arrow_refuses(folder, value):
    lines = [f'{{"user_id": "{user}", "time_ms": 1, "price": 1.5}}' for user in ("ann", "bo")]
    lines.insert(1, f'{{"user_id": "cy", "time_ms": 1, "price": {value}}}')
    keys = dict.fromkeys(EVENT_HEADER.split(","))
    (folder / "events.jsonl").write_text("\n".join([json.dumps(keys), *lines]))
    table, letters = read_all(small_spec(), folder)
    assert table["user_id"].to_pylist() == ["ann", "bo"]
    assert [(d.row, d.reason.split(",")[0]) for d in letters] == [
        (3, "a key twice"),
        (1, "user_id: no user id"),
    ]


def test_jsonl_objects_that_differ_inside_are_an_error(folder):
    lines = ['{"user_id": "ann", "shop": {"x": 1}}', '{"user_id": "ann", "shop": {"x": "a"}}']
    (folder / "events.jsonl").write_text("\n".join(lines))
    with pytest.raises(SourceError, match=r"events\.jsonl: between lines 1 and 2, .*one type"):
        sources.find(small_spec(), str(folder))


def test_duplicates_are_rows_equal_in_every_field(folder):
    header = EVENT_HEADER + ",unread"
    csv(folder, GOOD + ",1", GOOD + ",1", GOOD + ",2", header=header)
    table, _ = read_all(small_spec(), folder)
    kept, dropped = events.drop_duplicates(table)
    assert dropped == 1
    assert (kept[ORDER].to_numpy() & 7).tolist() == [2, 4]


def test_rows_without_a_time_are_not_compared(folder):
    csv(folder, *[GOOD.replace("1000", "")] * 2)
    table, _ = read_all(small_spec(), folder)
    assert events.drop_duplicates(table)[1] == 0


def test_identity_tells_lists_and_nulls_apart():
    def hashes(values, type_):
        rows = pa.table({"x": pa.array(values, type_), "y": pa.array([0] * len(values))})
        return row_identity(rows)

    strings = pa.list_(pa.string())
    lists = [["a", "b"], ["b", "a"], ["ab"], [], None, ["a", "b"], ["a", None], ["", "a"]]
    found = hashes(lists, strings)
    assert found[0] == found[5]
    assert len(set(found.tolist())) >= len(lists) - 2  # [] and null may be the same
    pairs = hashes([[1, 2], [2, 1], None, [1, 2]], pa.list_(pa.float32(), 2))
    assert pairs[0] == pairs[3] and len(set(pairs.tolist())) == 3
    floats = hashes([0.0, 1.0, None, 1.0], pa.float64())
    assert floats[1] == floats[3] and len(set(floats.tolist())) == 3


def test_the_fingerprint_follows_the_files(folder):
    path = csv(folder, GOOD)
    before = sources.fingerprint(small_spec(), str(folder))
    assert sources.fingerprint(small_spec(), str(folder)) == before
    path.write_text(path.read_text() + GOOD + "\n")
    assert sources.fingerprint(small_spec(), str(folder)) != before


# --- MovieLens -----------------------------------------------------------------------------


@pytest.fixture
def movielens(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    movies = "1::Toy Story (1995)::Animation|Comedy\n2::Les Misérables: 2 (1958)::Drama\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    (tmp_path / "ratings.dat").write_text(
        "1::1::5::978300760\n1::2::3::978300761\n2::2::nine::978300762\n2::1::4\n2::9::4::978300763\n"
    )
    return tmp_path


def test_movielens(movielens):
    spec = load_spec("movielens_1m")
    table, letters = read_all(spec, movielens)
    rows = table.to_pylist()
    assert [r["time_ms"] for r in rows] == [978300760000, 978300761000, 978300763000]
    assert [r["label_like"] for r in rows] == [1.0, 0.0, 1.0]
    assert [r["rating:category"] for r in rows] == ["5", "3", "4"]
    assert [r["genres:category[]"] for r in rows] == [["Animation", "Comedy"], ["Drama"], []]
    assert [r["year:category"] for r in rows] == ["1995", "1958", None]
    assert [(d.row, d.reason, d.raw) for d in letters] == [
        (4, "3 fields instead of 4", "2::1::4"),
        (3, "rating: not 1 to 5", letters[1].raw),
    ]
    assert "nine" in letters[1].raw
    users, _ = read_all(spec, movielens, "users")
    assert users["label_gender"].to_pylist() == [1.0, 0.0]
    assert users["gender:category"].to_pylist() == ["F", "M"]


def test_movielens_without_a_file(movielens):
    (movielens / "movies.dat").unlink()
    with pytest.raises(SourceError, match=r"movies\.dat: no such file"):
        sources.find(load_spec("movielens_1m"), str(movielens))


# --- KuaiRand ------------------------------------------------------------------------------

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)


@pytest.fixture
def kuairand(tmp_path: pathlib.Path) -> pathlib.Path:
    log = [
        "0,10,20220425,905,1650812741436,1,0,0,0,0,0,1,300,200,0,0,0,0,1",
        "0,11,20220425,2310,1650812741437,0,0,0,0,0,0,0,300,0,0,0,0,0,4",
        "0,99,20220425,oops,1650812741438,0,0,0,0,0,0,0,300,100,0,0,0,0,4",
    ]
    (tmp_path / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join([LOG_HEADER, *log]))
    videos = ["video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
              "server_width,server_height,music_id,music_type,tag",
              '10,7,NORMAL,2022-04-10,Web,0.0,87433.0,720.0,1280.0,9155697141,9.0,"39,2"',
              "11,8,AD,2022-04-10,Kmovie,0.0,,720.0,1280.0,,9.0,"]  # fmt: skip
    with gzip.open(tmp_path / "video_features_basic_pure.csv.gz", "wt") as file:
        file.write("\n".join(videos))
    header = (
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
        "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,"
        "friend_user_num,friend_user_num_range,register_days,register_days_range,"
        + ",".join(f"onehot_feat{i}" for i in range(18))
    )
    user = '0,full_active,0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+' + ",1" * 18
    (tmp_path / "user_features_pure.csv").write_text(f"{header}\n{user}\n")
    return tmp_path


def test_kuairand(kuairand):
    table, (letter,) = read_all(load_spec("kuairand_pure"), kuairand)
    first, second = table.to_pylist()
    assert first["hour:category"] == "9" and second["hour:category"] == "23"
    assert first["watch_ratio:dense"] == 1.5 and second["watch_ratio:dense"] is None
    assert first["tag:category[]"] == ["39", "2"] and second["tag:category[]"] == []
    assert first["music_id:int"] == 9155697141 and second["music_id:int"] is None
    assert first["author_id:int"] == 7 and first["label_click"] == 1.0
    assert letter.row == 4 and letter.reason == "hourmin: not an integer" and "oops" in letter.raw


def _without_history_labels():
    raw = load_spec("kuairand_pure").model_dump(mode="json")
    return parse_spec(raw | {"source": {"format": "kuairand"}})


def test_kuairand_history_is_no_target_unless_asked(kuairand):
    history = pa.table(
        {
            "user_id": [0, 5],
            "history_len": [3, 0],
            "last_time_ms": [1, 1],
            "watch_seq": [[11, 10, 11], []],
            "like_seq": pa.array([[10], []], pa.list_(pa.int64())),
            "long_watch_seq": pa.array([[11], []], pa.list_(pa.int64())),
        }
    )
    pyarrow.parquet.write_table(history, kuairand / "user_history_before_4_25.parquet")
    table, _ = read_all(_without_history_labels(), kuairand)
    rows = table.to_pylist()[:3]
    assert [r["video_id:int"] for r in rows] == [11, 10, 11]
    assert [r["is_like:category"] for r in rows] == [
        "0", "1", "0"
    ]  # fmt: skip
    assert [r["long_view:category"] for r in rows] == ["1", "0", "1"]
    assert {r[name] for r in rows for name in ("time_ms", "tab:category", "is_click:category",
            "label_click", "label_like", "label_long_view")} == {None}  # fmt: skip
    assert [r["author_id:int"] for r in rows] == [8, 7, 8]
    orders = table[ORDER].to_numpy()
    assert (np.diff(orders) > 0).all()


def test_kuairand_counts_what_earlier_exposures_say_of_a_video(kuairand):
    spec = load_spec("kuairand_pure")
    names = [f"{name}:dense" for name in COUNTED]
    table, _ = read_all(spec, kuairand)
    assert table.select(names).to_pylist() == [dict.fromkeys(names)] * 2
    history = {"user_id": [0, 5], "watch_seq": [[11, 10, 11], [11]], "like_seq": [[10], [11]],
               "long_watch_seq": [[11], []]}  # fmt: skip
    pyarrow.parquet.write_table(pa.table(history), kuairand / "user_history_before_4_25.parquet")
    table, _ = read_all(spec, kuairand)
    *_, first, second = table.select(names).to_pylist()
    assert list(first.values()) == [1, 1.0, 0.0]
    assert list(second.values()) == pytest.approx([3, 1 / 3, 2 / 3])
    raw = spec.model_dump(mode="json")
    seen = {"name": "seen", "scope": "sequence", "kind": "dense", "column": "video_exposures"}
    raw["channels"].append(seen)
    with pytest.raises(SourceError, match="'seen' reads video_exposures, which counts the history"):
        sources.find(parse_spec(raw), str(kuairand))


def test_a_kuairand_history_without_users_is_as_none(kuairand):
    spec = load_spec("kuairand_pure")
    without, _ = read_all(spec, kuairand)
    lists = pa.list_(pa.int64())
    fields = {"user_id": pa.int64(), "watch_seq": lists, "like_seq": lists, "long_watch_seq": lists}
    empty = pa.table({name: pa.array([], kind) for name, kind in fields.items()})
    pyarrow.parquet.write_table(empty, kuairand / "user_history_before_4_25.parquet")
    table, _ = read_all(spec, kuairand)
    known = [name for name in table.column_names if name != ORDER]
    assert table.select(known).equals(without.select(known))


def test_kuairand_history_labels_are_of_first_exposures_and_nothing_counts_them(kuairand):
    history = {"user_id": [0, 5], "watch_seq": [[11, 10, 11], [11]], "like_seq": [[10], [11]],
               "long_watch_seq": [[11], []]}  # fmt: skip
    pyarrow.parquet.write_table(pa.table(history), kuairand / "user_history_before_4_25.parquet")
    spec = load_spec("kuairand_pure")
    table, _ = read_all(spec, kuairand)
    rows = table.to_pylist()
    assert [r["label_like"] for r in rows[:4]] == [0.0, 1.0, None, 1.0]
    assert [r["label_long_view"] for r in rows[:4]] == [1.0, 0.0, None, 0.0]
    assert [r["is_like:category"] for r in rows[:4]] == ["0", "1", "0", "1"]
    assert {r["label_click"] for r in rows[:4]} == {None}
    counted = [[r[f"{name}:dense"] for name in COUNTED] for r in rows]
    assert counted[:4] == [[None] * 3] * 4 and counted[4] == [1, 1.0, 0.0]

    users, _ = read_all(spec, kuairand, "users")
    built = build_instances(table, users, spec).to_pylist()
    (instance,) = [i for i in built if i["user_id"] == [b"0"]]
    assert instance["target_position"][:2] == [0, 1]
    assert instance["target_split"][:2] == [0, 0]
    assert instance["label_long_view"][:2] == [1.0, 0.0] and np.isnan(instance["label_click"][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": {"format": "tabular", "path": "e.parquet"}}, "with 'format: kuairand'"),
        ({"split": {"by": "user", "history": "streaming"}}, "with 'split: {by: time}'"),
        ({"source": {"where": {"column": "tab", "values": ["1"]}}}, "don't go together"),
    ],
)
def test_history_labels_are_kuairands_and_training_s(change, said):
    raw = load_spec("kuairand_pure").model_dump(mode="json")
    changed = {name: raw[name] | value for name, value in change.items()}
    with pytest.raises(ValueError, match=f"'history_labels'.* {re.escape(said)}"):
        parse_spec(raw | changed)


def test_kuairand_without_its_files(tmp_path):
    with pytest.raises(SourceError, match="no log_standard_.*is this KuaiRand's folder"):
        sources.find(load_spec("kuairand_pure"), str(tmp_path))


def test_kuairand_spec_with_an_unknown_column(kuairand):
    raw = load_spec("kuairand_pure").model_dump(mode="json")
    raw["channels"][0]["column"] = "vid"
    with pytest.raises(SourceError, match="missing column 'vid'.*channel 'video_id'"):
        sources.find(parse_spec(raw), str(kuairand))


def test_user_types_cover_the_small_specs_users():
    assert {c.source for c in user_columns(small_spec())} == set(USER_TYPES)
