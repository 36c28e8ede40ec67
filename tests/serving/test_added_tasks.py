"""Tasks that come and go while a version serves."""

import contextlib
import json
import logging
import re
import shutil
import threading
import zipfile

import grpc
import numpy as np
import pytest

from serving.client import Client, ServingError, example
from serving.local import local_server
from serving.server import added_tasks, contract, task_bundle
from serving.server.saved_model import SavedModel
from serving.server.servable import Options, Servable
from tests.serving.added_task_model import BACKBONE, CONTRACT, write, write_task
from tests.serving.http import ask
from tests.serving.process import wait_until

SIGNATURE = "added_tasks"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("added") / "1"
    write(path)
    return path


@pytest.fixture
def version(exported, tmp_path):
    """A version directory in a base path of its own."""
    path = tmp_path / "1"
    path.symlink_to(exported)
    return path


@pytest.fixture
def tasks(tmp_path):
    return tmp_path / added_tasks.FOLDER / BACKBONE


@pytest.fixture
def servable(version):
    loaded = Servable(str(version), Options())
    yield loaded
    loaded.close()


def request(*prices_of, items=2):
    rows = [
        example({"user_id": f"u{i}", "sequence_item": [1] * items, "candidate_price": list(prices)})
        for i, prices in enumerate(prices_of)
    ]
    return {"examples": np.array(rows, object)}


def add(servable, *args, **kwargs):
    path = write_task(*args, **kwargs)
    servable.added_tasks.poll()
    return path


def test_answers_come_under_the_tasks_names(servable, tasks):
    add(servable, tasks, "cart", [10, 1])
    add(servable, tasks, "vip", [5, 3], extra=[1, 2, 3], per="user")
    answer = servable.run(SIGNATURE, request([1.0, 2.0], [3.0]))
    assert set(answer) == {"cart", "vip", "candidates", "user_id"}
    np.testing.assert_array_equal(answer["cart"], [[12, 22], [32, 0]])
    np.testing.assert_array_equal(answer["vip"], [12, 12])
    one = servable.run(SIGNATURE, request([1.0]), ["vip"])
    assert list(one) == ["vip"]
    np.testing.assert_array_equal(one["vip"], [12])


def test_clients_see_what_is_there_now(servable, tasks):
    def outputs():
        signature = servable.signatures[SIGNATURE]
        assert list(signature.inputs) == ["examples"]
        return {
            name: [dim.size for dim in info.tensor_shape.dim]
            for name, info in signature.outputs.items()
        }

    always = {"candidates": [-1], "user_id": [-1]}
    assert outputs() == always
    assert set(servable.run(SIGNATURE, request([1.0]))) == set(always)
    path = add(servable, tasks, "cart", [1, 0])
    write_task(tasks, "vip", [1, 0], per="user")
    servable.added_tasks.poll()
    assert outputs() == always | {"cart": [-1, -1], "vip": [-1]}
    path.unlink()
    servable.added_tasks.poll()
    assert outputs() == always | {"vip": [-1]}


def test_a_request_under_way_is_answered_by_the_tasks_it_saw(servable, tasks):
    """Its signature was read just before the task went."""
    path = add(servable, tasks, "cart", [1, 0])
    path.unlink()
    servable.added_tasks.poll()
    answer = servable.run(SIGNATURE, request([4.0]), ["cart"])
    np.testing.assert_array_equal(answer["cart"], [[4]])


def test_a_task_trained_again_takes_the_old_one_s_place(servable, tasks):
    add(servable, tasks, "cart", [1, 0])
    add(servable, tasks, "cart", [2, 0])
    np.testing.assert_array_equal(servable.run(SIGNATURE, request([4.0]))["cart"], [[8]])
    assert servable.added_tasks.refused == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "other"}, "trained on another model, 'other', not '0123456789abcdef'"),
        ({"per": "item"}, r"a task per 'item'; the model takes \['impression', 'user'\]"),
        ({"per": None}, "doesn't say 'per'"),
        ({"slope": [1, 2, 3]}, r"slope is float32 \[3\], not float32 \[2\]"),
        ({"slope": [np.nan, 1]}, "slope isn't finite"),
        ({"name": "user_id"}, "'user_id' is an output of the model's own"),
        ({"name": "half\ud800"}, "doesn't say 'name', in printable characters"),
    ],
)
def test_what_doesnt_fit_is_refused_and_the_others_answer(servable, tasks, caplog, changes, said):
    add(servable, tasks, "cart", [1, 0])
    add(servable, tasks, **{"name": "bad", "slope": [1, 1], "file": "bad"} | changes)
    servable.added_tasks.poll()
    (message,) = errors(caplog)
    assert "bad.npz isn't served: " in message
    assert re.search(said, message)
    assert servable.added_tasks.refused == 1 and list(servable.added_tasks.tasks) == ["cart"]
    np.testing.assert_array_equal(servable.run(SIGNATURE, request([4.0]))["cart"], [[4]])


def test_two_files_of_one_task_are_one_too_many(servable, tasks, caplog):
    add(servable, tasks, "cart", [1, 0])
    add(servable, tasks, "cart", [2, 0], file="later")
    assert "later.npz isn't served: another file has task 'cart'" in caplog.text
    assert servable.added_tasks.refused == 1
    np.testing.assert_array_equal(servable.run(SIGNATURE, request([4.0]))["cart"], [[4]])


def test_a_damaged_file_leaves_what_was_there(servable, tasks, caplog):
    path = add(servable, tasks, "cart", [1, 0])
    content = path.read_bytes()
    for place in (0, content.rfind(b"NUMPY"), len(content) - 30):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        for text in (bytes(damaged), content[:place]):
            path.write_bytes(text)
            servable.added_tasks.poll()
            assert servable.added_tasks.refused == 1, place
            np.testing.assert_array_equal(servable.run(SIGNATURE, request([4.0]))["cart"], [[4]])
    said = {re.sub(r".*served: | \(.*", "", message) for message in errors(caplog)}
    assert said == {"damaged or half written", "extra is missing"}  # its name was spoilt
    path.write_bytes(content)
    servable.added_tasks.poll()
    assert servable.added_tasks.refused == 0
    # Of a task that wasn't there before, nothing is.
    (tasks / "new.npz").write_bytes(content[:100])
    servable.added_tasks.poll()
    assert list(servable.added_tasks.tasks) == ["cart"]


def test_no_file_keeps_a_version_from_loading(version, tasks, caplog):
    """Neither one whose member is no array, nor one that would fill the memory; and what a file
    says of itself is read before its weights are."""
    write_task(tasks, "cart", [1, 0])
    spoil(write_task(tasks, "raw", [1, 0]), b"no array")
    spoil(write_task(tasks, "large", [1, 0]), bytes(task_bundle.MAX_BYTES))
    spoil(write_task(tasks, "other", [1, 0], backbone="other"), b"no array")
    loaded = Servable(str(version), Options())
    for message, said in zip(
        errors(caplog),
        (
            r"large.npz isn't served: \d+ bytes unpacked; 67108864 are allowed",
            "other.npz isn't served: trained on another model",
            "raw.npz isn't served: damaged or half written .ValueError: the magic string",
        ),
        strict=True,
    ):
        assert re.search(said, message)
    assert loaded.added_tasks.refused == 3
    np.testing.assert_array_equal(loaded.run(SIGNATURE, request([4.0]))["cart"], [[4]])
    loaded.close()


def errors(caplog):
    """What was logged as one, whatever else the process is told to log."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def spoil(path, content):
    """Its `slope` becomes this; the rest stays."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, content if name == "slope.npy" else member)


def test_a_look_that_runs_out_of_memory_is_made_again(servable, tasks, caplog, monkeypatch):
    add(servable, tasks, "cart", [1, 0])
    with monkeypatch.context() as patched:

        def too_much(*_):
            raise MemoryError("too much")

        patched.setattr(task_bundle, "stacked", too_much)
        add(servable, tasks, "vip", [1, 0])
        servable.added_tasks.poll()
    assert errors(caplog) == ["added tasks stay as they are: MemoryError: too much"]
    assert list(servable.added_tasks.tasks) == ["cart"]
    servable.added_tasks.poll()
    assert list(servable.added_tasks.tasks) == ["cart", "vip"]


def test_versions_served_at_once_have_their_own_tasks(exported, tmp_path):
    for number, backbone in enumerate((BACKBONE, "fedcba9876543210"), start=1):
        path = tmp_path / str(number)
        shutil.copytree(exported, path)
        declared = CONTRACT | {"added_tasks": CONTRACT["added_tasks"] | {"backbone": backbone}}
        (path / "assets.extra" / "serving.json").write_text(json.dumps(declared))
        folder = tmp_path / added_tasks.FOLDER / backbone
        write_task(folder, "cart", [number, 0], backbone=backbone)
    for number in (1, 2):
        loaded = Servable(str(tmp_path / str(number)), Options())
        np.testing.assert_array_equal(loaded.run(SIGNATURE, request([4.0]))["cart"], [[4 * number]])
        assert loaded.added_tasks.refused == 0
        loaded.close()


def test_a_folder_that_cannot_be_read_changes_nothing(servable, tasks, caplog):
    add(servable, tasks, "cart", [1, 0])
    tasks.rename(tasks.with_name("away"))
    tasks.write_text("no folder")
    servable.added_tasks.poll()
    servable.added_tasks.poll()
    (message,) = [text for text in errors(caplog) if "stay as they are" in text]
    assert "Not a directory" in message
    assert list(servable.added_tasks.tasks) == ["cart"]


def test_requests_at_once_are_merged_and_get_their_own_answers(servable, tasks):
    add(servable, tasks, "cart", [1, 0])
    add(servable, tasks, "vip", [0, 1], per="user")
    gate, wrong = threading.Barrier(16), []

    def client(i):
        asked = [float(i)] * (1 + i % 3)
        gate.wait()
        for _ in range(20):
            outputs = [["cart", "vip"], ["vip"], ["cart"]][i % 3]
            answer = servable.run(SIGNATURE, request(asked, items=i), outputs)
            expected = {"cart": [asked], "vip": [float(i)]}
            if {k: v.tolist() for k, v in answer.items()} != {k: expected[k] for k in outputs}:
                wrong.append((i, answer))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    sizes = servable.scheduler.batches
    assert sum(sizes) < 320 and servable.scheduler.batched_rows >= 320  # some ran together


def test_tasks_come_and_go_under_traffic(version, tasks):
    """Over gRPC: no request fails, and a new task is answered without a reload."""
    write_task(tasks, "cart", [1, 0])
    (tasks / "broken.npz").write_bytes(b"not a bundle")
    stop, failures = threading.Event(), []
    monitoring = version.with_name("monitoring.config")
    monitoring.write_text("prometheus_config { enable: true }")
    flags = ("--file_system_poll_wait_seconds=0.1", "--rest_api_port=-1")
    flags += (f"--monitoring_config_file={monitoring}",)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(local_server(version.parent, flags=flags))
        asking = stack.enter_context(Client(server.target))

        def traffic():
            with Client(server.target) as client:
                while not stop.is_set():
                    try:
                        answer = client.predict("default", request([4.0]), signature=SIGNATURE)
                        if answer["cart"].tolist() != [[4]]:
                            failures.append(answer)
                    except ServingError as error:
                        failures.append(error)

        def answered():
            signature = asking.metadata("default")[SIGNATURE]
            return set(signature.outputs) - {"candidates", "user_id"}

        threads = [threading.Thread(target=traffic) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert answered() == {"cart"}
        for i in range(5):
            path = write_task(tasks, f"task_{i}", [i, 0])
            wait_until(lambda i=i: f"task_{i}" in answered())
            inputs = request([4.0])
            got = asking.predict("default", inputs, signature=SIGNATURE, outputs=[f"task_{i}"])
            assert got[f"task_{i}"].tolist() == [[4 * i]]
            if i % 2:
                path.unlink()
                wait_until(lambda i=i: f"task_{i}" not in answered())
        with pytest.raises(ServingError) as caught:
            asking.predict("default", request([4.0]), signature=SIGNATURE, outputs=["nosuch"])
        assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
        assert "nosuch" in caught.value.message
        assert "{candidates,cart,task_0,task_2,task_4,user_id}" in caught.value.message
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert server.log().count("broken.npz isn't served") == 1
        page = ask(f"{server.rest_url}/monitoring/prometheus/metrics").body.decode()
        labels = '{model_name="default",version="1"}'
        assert f"serving_added_tasks{labels} 4.0" in page
        assert f"serving_added_tasks_refused{labels} 1.0" in page


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"signature": "nosuch"}, "no signature 'nosuch'"),
        ({"outputs": {"user": "nosuch"}}, "output 'nosuch' isn't there"),
        ({"outputs": {"user": "candidates"}}, "'candidates' has no last axis for the tasks"),
        ({"backbone": 7}, "backbone must be a text"),
        ({"backbone": "../7"}, "backbone must be lower-case hexadecimal digits"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_what_the_model_says_is_checked(exported, said, wrong, tmp_path):
    model = SavedModel(str(exported))
    declared = CONTRACT | {"added_tasks": CONTRACT["added_tasks"] | said}
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "serving.json").write_text(json.dumps(declared))
    with pytest.raises(ServingError, match=wrong):
        contract.read(str(tmp_path), model.signatures)
    model.close()
