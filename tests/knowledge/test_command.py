"""The command line, from the pipeline's Parquet export on."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.knowledge import __main__ as command
from serving.knowledge import location, lookup
from serving.knowledge.parquet import read


def _export(folder, columns: dict, vectors: np.ndarray, version: str = "20260101", files: int = 2):
    """As `tfx_pipeline.components.user_embeddings` writes it."""
    folder.mkdir(parents=True)
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1]
    )
    table = pa.table({**columns, "embedding": embedding, "model_version": [version] * len(vectors)})
    size = -(-len(vectors) // files)
    for i in range(files):
        part = table.slice(i * size, size)
        parquet.write_table(part, folder / f"embeddings-{i:05d}-of-{files:05d}.parquet")
    return str(folder)


def _printed(capsys, *arguments: str) -> list:
    assert command.main(list(arguments)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("kind", ["mapped", "redis"])
def test_publish_get_delete(kind, tmp_path, request, capsys):
    store = f"--store={tmp_path / 'store'}"
    if kind == "redis":
        store = f"--store={request.getfixturevalue('redis_url')}"
    vectors = np.arange(12.0).reshape(4, 3)
    users = _export(tmp_path / "users", {"user_id": list("abcd")}, vectors)
    items = _export(tmp_path / "items", {"item_id": list("wxyz")}, vectors + 100)
    pairs = _export(
        tmp_path / "pairs", {"user_id": list("aabb"), "category": list("stst")}, vectors[:, :1]
    )
    assert command.main(["publish", store, users, items, pairs]) == 0
    assert capsys.readouterr().out == "published version 20260101; versions: 20260101\n"
    get = ["get", store, "--user=b", "--item=z", "--category=t"]
    assert _printed(capsys, *get) == [
        {"version": 20260101, "user": [3, 4, 5], "item": [109, 110, 111], "user_category": [9]}
    ]
    assert _printed(capsys, "versions", store) == [20260101]
    assert command.main(["delete", store, "--user=b"]) == 0
    assert capsys.readouterr().out == "erased from every version\n"
    assert _printed(capsys, *get) == [
        {"version": 20260101, "user": None, "item": [109, 110, 111], "user_category": None}
    ]
    assert command.main(["delete", store, "--user=b"]) == 0
    assert capsys.readouterr().out == "nothing was stored of this user\n"


def test_a_large_export_is_read_in_chunks(tmp_path):
    users = [f"u{i}" for i in range(50_001)]
    vectors = np.arange(100_002.0).reshape(-1, 2)
    folder = _export(tmp_path / "users", {"user_id": users}, vectors)
    sizes = [len(rows.keys) for rows in read(folder)]
    assert sum(sizes) == 50_001 and max(sizes) <= 20_000
    store = location.open_store(str(tmp_path / "store"))
    store.publish(1, read(folder))
    np.testing.assert_array_equal(lookup(store, users=users).vectors["user"], vectors)


def _failing(tmp_path, name: str):
    vectors = np.ones((2, 3))
    folder = tmp_path / name
    if name == "nothing":
        folder.mkdir()
    elif name == "rubbish":
        folder.mkdir()
        (folder / "x.parquet").write_text("rubbish")
    elif name == "columns":
        _export(folder, {"id": ["a", "b"]}, vectors)
    elif name == "null":
        _export(folder, {"user_id": ["a", None]}, vectors)
    elif name == "nan":
        _export(folder, {"user_id": ["a", "b"]}, vectors * np.nan)
    elif name == "twice":
        _export(folder, {"user_id": ["a", "a"]}, vectors)
    elif name == "version":
        _export(folder, {"user_id": ["a", "b"]}, vectors, version="best")
    return str(folder)


@pytest.mark.parametrize(
    "name, text",
    [
        ("nothing", "no *.parquet file"),
        ("rubbish", "x.parquet: no Parquet file"),
        ("columns", "needs the column embedding with user_id"),
        ("null", "a null in the column user_id"),
        ("nan", "an embedding isn't finite"),
        ("twice", "has the key of an earlier row"),
        ("version", "'best', not a number; give one by --version"),
    ],
)
def test_a_bad_export_is_one_clear_line(tmp_path, capsys, name, text):
    folder = _failing(tmp_path, name)
    assert command.main(["publish", f"--store={tmp_path / 'store'}", folder]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: INVALID_ARGUMENT: ") and error.count("\n") == 1
    assert text in error


def test_versions_names_a_damaged_one(tmp_path, capsys):
    store = tmp_path / "store"
    users = _export(tmp_path / "users", {"user_id": ["a", "b"]}, np.ones((2, 3)))
    assert command.main(["publish", f"--store={store}", users, "--version=3"]) == 0
    (store / "3" / "user.vectors").write_bytes(b"1")
    assert command.main(["versions", f"--store={store}"]) == 1
    assert "error: version 3: DATA_LOSS: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["get", "--user=a"], ["delete", "--user=a"], ["versions"]], ids=lambda a: a[0]
)
def test_a_mistyped_store_is_one_clear_line(tmp_path, capsys, arguments):
    name, *flags = arguments
    assert command.main([name, f"--store={tmp_path}/typo", *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--store={tmp_path}/typo: no such directory; `publish` makes it" in error
    assert not (tmp_path / "typo").exists()


def test_get_without_keys_says_what_to_give(tmp_path, capsys):
    assert command.main(["get", f"--store={tmp_path}"]) == 1
    assert "nothing to look up: give --user, --item or --category" in capsys.readouterr().err
