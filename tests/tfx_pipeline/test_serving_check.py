"""ServingCheck against the real server."""

import pathlib

import numpy as np
import pytest
from tfx.components.util import model_utils
from tfx.types.standard_artifacts import InfraBlessing

from tests.tfx_pipeline import served
from tfx_pipeline.components import serving_check
from tfx_pipeline.components.serving_check import ServingCheck, ServingCheckError

INSTANCES = [served.instance(f"u{i}", list(range(i)), targets=i % 4) for i in range(20)]


@pytest.fixture
def blessing(tmp_path) -> InfraBlessing:
    made = InfraBlessing()
    made.uri = str(tmp_path / "blessing")
    return made


def check(model, blessing, tmp_path, instances=INSTANCES, **parameters) -> None:
    ServingCheck.test_call(
        model=model,
        examples=served.write_examples(tmp_path / "examples", {"train": [], "eval": instances}),
        blessing=blessing,
        spec=served.SPEC.model_dump_json(),
        **{"num_examples": 16, "load_seconds": 60, **parameters},
    )


def files(blessing) -> list[str]:
    return [file.name for file in pathlib.Path(blessing.uri).iterdir()]


def test_a_good_model_is_blessed(blessing, tmp_path):
    check(served.write_model(tmp_path / "model"), blessing, tmp_path)
    assert model_utils.is_infra_validated(blessing)
    assert files(blessing) == ["INFRA_BLESSED"]


def assert_refused(blessing, reason: str) -> None:
    assert not model_utils.is_infra_validated(blessing)
    assert files(blessing) == ["INFRA_NOT_BLESSED"]
    assert reason in (pathlib.Path(blessing.uri) / "INFRA_NOT_BLESSED").read_text()


def test_a_model_that_gives_nan_is_refused(blessing, tmp_path):
    model = served.write_model(tmp_path / "model", scale=float("nan"))
    with pytest.raises(ServingCheckError, match="isn't finite"):
        check(model, blessing, tmp_path)
    assert_refused(blessing, "isn't finite")


def test_a_model_that_doesn_t_load_is_refused(blessing, tmp_path):
    model = served.write_model(tmp_path / "model")
    (pathlib.Path(model.uri) / "Format-Serving" / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(ServingCheckError, match="can't be loaded"):
        check(model, blessing, tmp_path)
    assert_refused(blessing, "can't be loaded")


def test_nothing_to_replay_is_refused(blessing, tmp_path):
    with pytest.raises(ServingCheckError, match="no instances to replay"):
        check(served.write_model(tmp_path / "model"), blessing, tmp_path, instances=[])
    assert_refused(blessing, "no instances")


BATCH = [served.instance("a", [1], targets=2), served.instance("b", [], targets=3)]
USERS = np.array([b"a", b"b"], object)
GOOD = {"click": np.full((2, 3), 0.5), "vip": np.full(2, 0.5), "user_id": USERS}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"click": np.full((2, 2), 0.5)}, r"click has shape \(2, 2\), should have \(2, 3\)"),
        ({"vip": np.full((2, 1), 0.5)}, r"vip has shape \(2, 1\)"),
        ({"vip": np.array([0.5, 1.01])}, "vip isn't a probability"),
        ({"vip": np.array([-0.01, 0.5])}, "vip isn't a probability"),
        ({"vip": np.array([0.5, np.inf])}, "vip isn't finite"),
        ({"user_id": USERS[::-1]}, "user_id isn't"),
    ],
)
def test_wrong_answers(change, reason):
    serving_check.check_answer(served.SPEC, "serving_default", GOOD, BATCH)
    with pytest.raises(ServingCheckError, match=reason):
        serving_check.check_answer(served.SPEC, "serving_default", {**GOOD, **change}, BATCH)


@pytest.mark.parametrize("name", GOOD)
def test_missing_outputs(name):
    rest = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ServingCheckError, match=name):
        serving_check.check_answer(served.SPEC, "serving_default", rest, BATCH)


def test_embeddings():
    answer = {"embedding": np.zeros((2, 4)), "user_id": USERS}
    serving_check.check_answer(served.SPEC, "embed", answer, BATCH)
    with pytest.raises(ServingCheckError, match=r"not \[B, D\]"):
        answer["embedding"] = np.zeros((4, 2))
        serving_check.check_answer(served.SPEC, "embed", answer, BATCH)


def test_equality_is_to_the_tolerance():
    ours = {"vip": np.array([0.5, 0.5]), "user_id": USERS}
    serving_check.check_equal("embed", ours, {**ours, "vip": ours["vip"] + 0.9e-5})
    for other, reason in (
        ({**ours, "vip": ours["vip"] + 1.1e-5}, "vip differs"),
        ({**ours, "user_id": USERS[::-1]}, "user_id differs"),
        ({**ours, "vip": ours["vip"][:1]}, "vip has shape"),
        ({"vip": ours["vip"]}, "the server returns"),
    ):
        with pytest.raises(ServingCheckError, match=reason):
            serving_check.check_equal("embed", ours, other)
