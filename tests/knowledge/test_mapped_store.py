"""What files add: crashes, damage, bytes that are gone."""

import pathlib
import shutil
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest

from serving import errors
from serving.knowledge import MappedStore, keys, lookup
from serving.knowledge.store import item_rows, user_category_rows, user_rows

ROOT = pathlib.Path(__file__).parents[2]
USERS = [f"u{i}" for i in range(3000)]
RNG = np.random.default_rng(1)


def _publish(root, version: int, vectors: np.ndarray | None = None) -> MappedStore:
    store = MappedStore(root)
    if vectors is None:
        vectors = np.full((len(USERS), 4), version, np.float32)
    pairs = user_category_rows(USERS, ["c"] * len(USERS), vectors[:, ::-1])
    store.publish(version, [user_rows(USERS, vectors), pairs, item_rows(["i"], vectors[:1])])
    return store


def _killed(root, action: str, moment: int) -> bool:
    """Runs `killed.py`; False if it ended before that moment."""
    command = [sys.executable, "-m", "tests.knowledge.killed", str(root), action, str(moment)]
    code = subprocess.run(command, cwd=ROOT).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("moment", [0, 1, 4])
def test_a_killed_writer_leaves_the_old_version_served(tmp_path, moment):
    reader = _publish(tmp_path, 1)
    assert _killed(tmp_path, "publish", moment)
    reader.refresh()
    for store in (reader, MappedStore(tmp_path)):
        answer = lookup(store, users=USERS)
        assert answer.version == 1
        assert answer.found["user"].all() and (answer.vectors["user"] == 1).all()
    assert any(path.name.startswith(".") for path in tmp_path.iterdir())
    _publish(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}


@pytest.mark.parametrize("moment", range(1, 8))
def test_an_erasure_killed_at_any_step_does_no_damage_and_is_finished_by_the_next(tmp_path, moment):
    _publish(tmp_path, 1)
    ended = not _killed(tmp_path, "delete", moment)
    store = MappedStore(tmp_path)
    assert not store.damaged()
    if moment > 1:  # from its second sync on, the plan is there
        assert not lookup(store, users=["u7"]).found["user"][0]
    store.delete_user("u7")
    answer = lookup(store, users=USERS, categories=["c"] * len(USERS))
    for kind in ("user", "user_category"):
        assert np.flatnonzero(~answer.found[kind]).tolist() == [7]
        assert (np.delete(answer.vectors[kind], 7, 0) == 1).all()
    assert not MappedStore(tmp_path).damaged()
    assert not ended, "the moments end before the erasure does"


def test_an_erased_users_bytes_are_in_no_file(tmp_path):
    vectors = {v: RNG.standard_normal((len(USERS), 4), np.float32) for v in (1, 2)}
    for version, rows in vectors.items():
        store = _publish(tmp_path, version, rows)
    user = keys.of_ids(["u7"])
    pair = keys.of_pairs(user, keys.of_categories(["c"]))
    secrets = [half.tobytes() for key in (user, pair) for half in key[0]]
    secrets += [rows[7].tobytes() for rows in vectors.values()]
    secrets += [rows[7, ::-1].tobytes() for rows in vectors.values()]

    def holds() -> list[bool]:
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        return [any(secret in content for content in files) for secret in secrets]

    assert all(holds())
    store.delete_user("u7")
    assert not any(holds())
    assert lookup(store, users=["u8"]).vectors["user"].tolist() == [vectors[2][8].tolist()]


@pytest.mark.parametrize(
    "name", ["user.vectors", "user.index", "user_category.vectors", "categories"]
)
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_version_is_named_and_the_others_served(tmp_path, name, harm):
    _publish(tmp_path, 1)
    path = tmp_path / "1" / name
    if harm == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()
    store = MappedStore(tmp_path)
    assert store.versions() == ()
    with pytest.raises(errors.ServingError) as error:
        lookup(store, users=["u1"], version=1)
    assert error.value.code in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE)
    assert str(path) in error.value.message
    _publish(tmp_path, 2)
    store.refresh()
    assert lookup(store, users=["u1"]).version == 2
    shutil.rmtree(tmp_path / "1")
    _publish(tmp_path, 1)
    store.refresh()
    assert lookup(store, users=["u1"], version=1).found["user"].all()


@pytest.mark.parametrize("name", ["manifest.json", "user.index", "categories", "erasure.json"])
def test_erasing_goes_on_after_a_damaged_version_and_names_it(tmp_path, name):
    for version in (1, 2, 3):
        _publish(tmp_path, version)
    (tmp_path / "2" / name).write_text("rubbish")
    store = MappedStore(tmp_path)
    with pytest.raises(errors.ServingError) as error:
        store.delete_user("u7")
    assert error.value.code == grpc.StatusCode.DATA_LOSS
    assert "but not from version 2" in error.value.message
    assert str(tmp_path / "2" / name) in error.value.message
    assert store.versions() == (1, 3)
    for version in (1, 3):
        assert not lookup(store, users=["u7"], version=version).found["user"][0]
    shutil.rmtree(tmp_path / "2")
    assert store.delete_user("u7") is False


def test_erasing_leaves_damage_to_be_seen(tmp_path):
    _publish(tmp_path, 1)
    content = bytearray((tmp_path / "1" / "user.vectors").read_bytes())
    content[-1] ^= 1  # of another user, within the block whose checksum an erasure renews
    (tmp_path / "1" / "user.vectors").write_bytes(content)
    with pytest.raises(errors.ServingError, match="DATA_LOSS"):
        MappedStore(tmp_path).delete_user("u7")
    assert list(MappedStore(tmp_path).damaged()) == [1]


def test_erasing_removes_what_a_killed_writer_left(tmp_path):
    _publish(tmp_path, 1)
    assert _killed(tmp_path, "publish", 1)
    MappedStore(tmp_path).delete_user("u7")
    assert {path.name for path in tmp_path.iterdir()} == {"1"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "version": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    _publish(tmp_path, 1)
    (tmp_path / "1" / "manifest.json").write_text(text)
    (error,) = MappedStore(tmp_path).damaged().values()
    assert error.code == grpc.StatusCode.DATA_LOSS
    assert str(tmp_path / "1" / "manifest.json") in error.message


def test_a_version_copied_to_another_number_is_refused(tmp_path):
    _publish(tmp_path, 1)
    (tmp_path / "1").rename(tmp_path / "2")
    assert "of version 1" in MappedStore(tmp_path).damaged()[2].message


def test_damage_in_a_later_block_is_placed(tmp_path):
    vectors = np.ones((3000, 200), np.float32)
    MappedStore(tmp_path).publish(1, [user_rows(USERS, vectors)])
    path = tmp_path / "1" / "user.vectors"
    content = bytearray(path.read_bytes())
    content[1_500_000] ^= 1
    path.write_bytes(content)
    assert "between bytes 1048576 and 2097152" in MappedStore(tmp_path).damaged()[1].message
    assert MappedStore(tmp_path, check=False).versions() == (1,)


def test_a_directory_that_cant_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ServingError, match="is a file"):
        MappedStore(tmp_path / "file")
    with pytest.raises(errors.ServingError, match="version 1 can't be written"):
        _publish(tmp_path / "file" / "below", 1)
    with pytest.raises(errors.ServingError, match="user can't be erased: .*none"):
        MappedStore(tmp_path / "none").delete_user("u")  # a mistyped path mustn't look like success
