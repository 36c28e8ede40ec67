"""Finding versions while somebody else writes them."""

import pathlib

from serving.server import config, model


def test_whatever_a_load_fails_with_it_is_retried_no_more_often(push, tmp_path, caplog):
    """Python's JSON reader gives up with a RecursionError, which is no error of ours."""
    version = push(1.0, tmp_path, 1)
    (version / "assets.extra" / "serving.json").write_text("[" * 100_000)
    (entry,) = config.single_model("m", str(tmp_path)).model_config_list.config
    served = model.Model(entry)
    for _ in range(3):
        served.poll()
    (failed,) = served.versions()
    assert failed.error and failed.error.code.name == "INTERNAL"
    assert "RecursionError" in failed.error.message
    assert caplog.text.count("can't be loaded") == 1


def test_files_replaced_while_a_failed_version_is_looked_at_dont_stop_the_watching(
    tmp_path, monkeypatch
):
    version = tmp_path / "1"
    version.mkdir()
    (version / model.GRAPH_FILE).write_bytes(b"not a model")
    (entry,) = config.single_model("m", str(tmp_path)).model_config_list.config
    served = model.Model(entry)
    served.poll()
    (failed,) = served.versions()
    assert failed.error

    is_file = pathlib.Path.is_file

    def gone_once_seen(path):
        found = is_file(path)
        if path.name == "being.written":
            path.unlink(missing_ok=True)
        return found

    (version / "being.written").touch()
    monkeypatch.setattr(pathlib.Path, "is_file", gone_once_seen)
    served.poll()  # Tried again: the files aren't those that failed.
    assert served.versions()[0] is not failed and served.versions()[0].error
