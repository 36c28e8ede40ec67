"""What is served: version policies, labels, reloads, retries. Loading runs in this process."""

import pathlib
import threading
import time

import numpy as np
import pytest
from google.protobuf import text_format

from serving import protos
from serving.errors import ServingError
from serving.server import models
from serving.server.manager import Manager
from serving.server.model import GRAPH_FILE, Model, Retries
from serving.server.servable import Options

QUICK = Options(warmup=False)


def config(text: str):
    return text_format.Parse(text, protos.ModelServerConfig())


def entry(name: str, path: pathlib.Path, more: str = ""):
    return f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}\n'


def models_config(*entries: str):
    return config(f"model_config_list {{ {' '.join(entries)} }}")


def model_of(path: pathlib.Path, more: str = "", retries: Retries = Retries(0)) -> Model:  # noqa: B008
    (parsed,) = models_config(entry("m", path, more)).model_config_list.config
    return Model(parsed, QUICK, retries)


def states(model: Model) -> dict[int, str]:
    name = protos.ModelVersionStatus.State.Name
    return {version.number: name(version.state) for version in model.versions()}


def settled(model: Model) -> dict[int, str]:
    """Its states once what is to be unloaded is."""
    deadline = time.monotonic() + 60
    while "UNLOADING" in states(model).values() and time.monotonic() < deadline:
        time.sleep(0.01)
    return states(model)


def spec(text: str):
    return text_format.Parse(text, protos.ModelSpec())


def corrupt(path: pathlib.Path) -> None:
    path.mkdir(parents=True)
    (path / GRAPH_FILE).write_bytes(b"not a model")


@pytest.fixture
def manager():
    """Serves nothing yet; looks only when told to."""
    made = Manager(QUICK, Retries(0), load_threads=2)
    yield made
    for model in made.models:
        model.retire()


def start(manager: Manager, *entries: str) -> None:
    manager.start(models_config(*entries))
    for model in manager.models:
        model.poll()


def refused(manager: Manager, reload) -> tuple[str, str]:
    with pytest.raises(ServingError) as caught:
        manager.reload(reload)
    return caught.value.code.name, caught.value.message


def unused(manager: Manager, text: str) -> str:
    with pytest.raises(ServingError) as caught, manager.models.use(spec(text)):
        pass
    return str(caught.value)


# --- versions


def test_policies_load_and_unload(push, tmp_path):
    for number in (1, 2, 3):
        push(1.0, tmp_path, number)
    model = model_of(tmp_path, "model_version_policy { latest { num_versions: 2 } }")
    model.poll()
    assert states(model) == {3: "AVAILABLE", 2: "AVAILABLE"}
    with model.use(None) as (number, _):
        assert number == 3
    push(1.0, tmp_path, 4)
    model.poll()
    assert settled(model) == {4: "AVAILABLE", 3: "AVAILABLE", 2: "END"}
    model.retire()
    assert set(settled(model).values()) == {"END"}
    model.poll()
    assert not model.is_available()


def test_specific_versions_that_arent_there_cost_no_availability(push, tmp_path, caplog):
    push(1.0, tmp_path, 1)
    model = model_of(tmp_path)
    model.poll()
    (parsed,) = models_config(
        entry("m", tmp_path, "model_version_policy { specific { versions: 2 } }")
    ).model_config_list.config
    model.configure(parsed)
    model.poll()
    model.poll()
    assert states(model) == {1: "AVAILABLE"}
    assert caplog.text.count("versions [2] of m, named by its policy, aren't in") == 1
    push(1.0, tmp_path, 2)
    model.poll()
    assert settled(model) == {2: "AVAILABLE", 1: "END"}
    model.retire()


def test_a_long_request_holds_up_no_loading(push, tmp_path):
    push(1.0, tmp_path, 1)
    model = model_of(tmp_path)
    model.poll()
    with model.use(None) as (_, servable):
        push(2.0, tmp_path, 2)
        look = threading.Thread(target=model.poll, daemon=True)
        look.start()
        look.join(20)
        assert not look.is_alive()
        assert states(model) == {2: "AVAILABLE", 1: "UNLOADING"}
        x = np.ones(1, np.float32)
        assert servable.run("add", {"x": x, "y": x})["sum"] == 2
    assert settled(model) == {2: "AVAILABLE", 1: "END"}
    model.retire()


def test_who_asks_too_early_is_told_that_the_model_is_loading(push, tmp_path, monkeypatch):
    push(1.0, tmp_path, 1)
    model, told = model_of(tmp_path), []

    def loading(*_) -> None:
        for number in (None, 1, 2):
            with pytest.raises(ServingError) as refused, model.use(number):
                pass
            told.append(refused.value.message)

    monkeypatch.setattr("serving.server.version.Servable", loading)
    model.poll()
    assert told == [
        "Servable not found for request: Latest(m) (version 1 is still loading)",
        "Servable not found for request: Specific(m, 1) (version 1 is still loading)",
        "Servable not found for request: Specific(m, 2)",
    ]


def test_a_corrupt_version_beside_a_good_one(push, tmp_path):
    push(1.0, tmp_path, 1)
    corrupt(tmp_path / "2")
    model = model_of(tmp_path, "model_version_policy { all {} }")
    model.poll()
    assert states(model) == {2: "END", 1: "AVAILABLE"}
    assert model.versions()[0].error
    model.retire()


def test_failed_loads_are_retried_so_often_and_then_no_more(tmp_path, caplog):
    corrupt(tmp_path / "1")
    model = model_of(tmp_path, retries=Retries(2, 0.0))
    for _ in range(5):
        model.poll()
    assert caplog.text.count("can't be loaded") == 3
    patient = model_of(tmp_path, retries=Retries(2, 1000.0))
    caplog.clear()
    for _ in range(5):
        patient.poll()
    assert caplog.text.count("can't be loaded") == 1


def test_directories_that_are_no_versions(tmp_path, push):
    push(1.0, tmp_path, 1)
    for name in ("half-written", "2", "-3", "1.5", "٣", str(2**63)):
        (tmp_path / name).mkdir()
    (tmp_path / str(2**63) / GRAPH_FILE).touch()
    (tmp_path / "٣" / GRAPH_FILE).touch()
    model = model_of(tmp_path)
    model.poll()
    assert states(model) == {1: "AVAILABLE"}
    model.retire()


# --- reloads and labels


def test_a_reload_adds_changes_and_removes_models(push, tmp_path, manager):
    for name in "abc":
        push(1.0, tmp_path / name, 1)
    push(2.0, tmp_path / "a", 2)
    start(manager, entry("a", tmp_path / "a"), entry("b", tmp_path / "b"))
    removed = manager.models.find(spec('name: "b"'))
    kept = manager.models.find(spec('name: "a"'))
    manager.reload(
        models_config(
            entry("c", tmp_path / "c"),
            entry("a", tmp_path / "a", "model_version_policy { all {} }"),
        )
    )
    assert [model.name for model in manager.models] == ["c", "a"]
    assert manager.models.ready
    assert manager.models.find(spec('name: "a"')) is kept
    kept.poll()
    assert states(kept) == {2: "AVAILABLE", 1: "AVAILABLE"}
    assert "Servable not found for request: Latest(b)" in unused(manager, 'name: "b"')
    removed.retire()  # waits for the one under way
    assert settled(removed) == {1: "END"}


def test_another_base_path_is_loaded_before_the_old_one_goes(push, tmp_path, manager):
    push(1.0, tmp_path / "old", 1)
    push(2.0, tmp_path / "new", 1)
    start(manager, entry("m", tmp_path / "old"))
    with manager.models.use(spec('name: "m"')) as before:
        manager.reload(models_config(entry("m", tmp_path / "new")))
        with manager.models.use(spec('name: "m"')) as after:
            assert after.servable is not before.servable


def test_a_request_that_a_reload_overtakes_is_answered(push, tmp_path, manager, monkeypatch):
    """Between finding what a name or a label means and holding it, that is replaced and gone."""
    push(1.0, tmp_path / "old", 1)
    push(2.0, tmp_path / "new", 1)
    push(2.0, tmp_path / "new", 2)
    every = "model_version_policy { all {} }"
    label = 'version_labels { key: "stable" value: N }'
    start(manager, entry("m", tmp_path / "old", every + label.replace("N", "1")))

    def overtaken(asked: str, more: str) -> models.Used:
        (before,) = manager.models
        use = before.use

        def late(number):
            monkeypatch.undo()
            manager.reload(models_config(entry("m", tmp_path / "new", more)))
            next(iter(manager.models)).poll()
            if before not in manager.models:
                before.retire()
            return use(number)

        monkeypatch.setattr(before, "use", late)
        with manager.models.use(spec(asked)) as used:
            return used

    replaced = overtaken('name: "m"', every + label.replace("N", "1"))
    assert replaced.version == 2
    moved = overtaken(
        'name: "m" version_label: "stable"',
        "model_version_policy { specific { versions: 2 } }" + label.replace("N", "2"),
    )
    assert moved.version == 2


def test_a_reload_is_applied_whole_or_not_at_all(push, tmp_path, manager):
    for name in "ab":
        push(1.0, tmp_path / name, 1)
    corrupt(tmp_path / "bad" / "1")
    start(manager, entry("a", tmp_path / "a"))
    code, text = refused(
        manager, models_config(entry("b", tmp_path / "b"), entry("bad", tmp_path / "bad"))
    )
    assert code == "UNKNOWN"
    assert text.startswith("1 model(s) did not become available: {{name: bad version: 1} due to")
    code, text = refused(
        manager, models_config(entry("b", tmp_path / "b"), entry("no", tmp_path / "no"))
    )
    assert code == "UNKNOWN" and f"no versions in {tmp_path}/no" in text
    label = 'version_labels { key: "canary" value: 2 }'
    code, text = refused(
        manager, models_config(entry("b", tmp_path / "b"), entry("a", tmp_path / "a", label))
    )
    assert (code, text) == (
        "FAILED_PRECONDITION",
        "Request to assign label to version 2 of model a,"
        " which is not currently available for inference",
    )
    assert [model.name for model in manager.models] == ["a"]
    assert manager.models.ready
    assert not next(iter(manager.models)).labels


def test_labels(push, tmp_path, manager):
    push(1.0, tmp_path, 1)
    push(2.0, tmp_path, 2)
    every = "model_version_policy { all {} }"
    start(manager, entry("m", tmp_path, every))

    def label(**numbers: int) -> None:
        labels = "".join(
            f'version_labels {{ key: "{key}" value: {number} }}' for key, number in numbers.items()
        )
        manager.reload(models_config(entry("m", tmp_path, every + labels)))

    def version(name: str) -> int:
        with manager.models.use(spec(f'name: "m" version_label: "{name}"')) as used:
            return used.version

    label(stable=1, canary=2)
    assert (version("stable"), version("canary")) == (1, 2)
    label(stable=2)
    assert version("stable") == 2
    with pytest.raises(ServingError, match="Unrecognized servable version label: canary"):
        version("canary")


def test_labels_for_versions_to_come(push, tmp_path):
    push(1.0, tmp_path, 1)
    manager = Manager(QUICK, Retries(0), allow_unavailable_labels=True)
    start(manager, entry("m", tmp_path))
    labelled = entry("m", tmp_path, 'version_labels { key: "next" value: 2 }')
    manager.reload(models_config(labelled))
    assert (
        unused(manager, 'name: "m" version_label: "next"')
        == "NOT_FOUND: Servable not found for request: Specific(m, 2)"
    )
    code, _ = refused(manager, models_config(labelled.replace("value: 2", "value: 3")))
    assert code == "FAILED_PRECONDITION"  # one in use may not be pointed at nothing
    next(iter(manager.models)).retire()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Only ModelConfigList is currently supported"),
        ("custom_model_config {}", "Only ModelConfigList is currently supported"),
        ("A A", "Illegal to list model a multiple times in config list"),
        ('config { name: "a" base_path: "/a" }', 'it needs model_platform: "tensorflow"'),
        (
            'config { name: "a" base_path: "/a" model_platform: "caffe" }',
            "Illegal to change a model's platform. For model a platform was tensorflow and new"
            " platform requested is caffe",
        ),
        (
            'config { name: "b" base_path: "/b" model_platform: "caffe" }',
            "Model b requests unsupported platform caffe",
        ),
        (
            'config { name: "a" base_path: "/a" model_platform: "tensorflow" model_type: 1 }',
            "Illegal setting both ModelServerConfig::model_type",
        ),
        (
            'config { name: "b" base_path: "models/b" model_platform: "tensorflow" }',
            "Expected model b to have an absolute path or URI; got base_path()=models/b",
        ),
        ('config { base_path: "/b" model_platform: "tensorflow" }', "base path /b has no name"),
        (
            'config { name: "b" base_path: "/b" model_platform: "tensorflow" logging_config {} }',
            "logging_config isn't supported",
        ),
        (
            'config { name: "b" base_path: "gs://models" model_platform: "tensorflow" }',
            "must be a local directory",
        ),
    ],
)
def test_configurations_that_cant_be(push, tmp_path, manager, text, message):
    push(1.0, tmp_path, 1)
    start(manager, entry("a", tmp_path))
    text = text.replace("A", entry("a", tmp_path))
    if "config {" in text and "custom" not in text:
        text = f"model_config_list {{ {text} }}"
    code, found = refused(manager, config(text))
    assert code == "INVALID_ARGUMENT" and message in found
    assert manager.models.ready


def test_one_slow_model_holds_up_no_other(push, tmp_path, manager):
    push(1.0, tmp_path / "a", 1)
    push(1.0, tmp_path / "b", 1)
    manager.start(models_config(entry("a", tmp_path / "a"), entry("b", tmp_path / "b")))
    slow, other = manager.models
    loaded = threading.Event()
    manager.on_change = lambda: other.is_available() and loaded.set()
    with slow._polling:  # as while it loads
        manager.poll()
        assert loaded.wait(60)
        manager.poll()
        assert not slow.is_available()
    assert other.is_available()
