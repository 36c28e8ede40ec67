"""`assets.extra/serving.json`: what a model says of itself, checked against its signatures."""

import copy
import json
import logging
import shutil

import grpc
import pytest

from serving.errors import ServingError
from serving.server import contract
from serving.server.saved_model import SavedModel
from serving.server.servable import Options, Servable
from tests.serving.saved_models import CONTRACT


@pytest.fixture(scope="module")
def signatures(exports):
    model = SavedModel(str(exports[1.0]))
    yield model.signatures
    model.close()


def write(folder, text):
    (folder / "assets.extra").mkdir(exist_ok=True)
    (folder / "assets.extra" / "serving.json").write_text(text)
    return str(folder)


def test_reads_what_the_model_says(tmp_path, signatures):
    read = contract.read(write(tmp_path, json.dumps(CONTRACT)), signatures)
    assert read.batching["pool"] == contract.Merging(frozenset({"values"}), {"kept": "length"})
    assert read.users == contract.Users(
        "serving_default",
        "score_and_embed",
        "score",
        frozenset({"sequence_item"}),
        frozenset(),
        frozenset({"target_position"}),
    )


def test_a_model_may_say_nothing(tmp_path, signatures):
    assert contract.read(str(tmp_path), signatures) == contract.Contract()
    assert contract.read(write(tmp_path, "{}"), signatures) == contract.Contract()


def test_a_model_may_say_that_requests_are_never_merged(tmp_path, exports, caplog):
    path = shutil.copytree(exports[1.0], tmp_path / "1")
    write(path, json.dumps({"batching": {"add": None, "pool": {"pad": ["values"]}}}))
    with caplog.at_level(logging.INFO):
        servable = Servable(str(path), Options(warmup=False))
    servable.close()
    assert set(servable.mergings) == {"pool", "embed", "classify", "regress"}
    (assumed,) = [text for text in caplog.messages if "as the shapes suggest" in text]
    assert assumed.startswith("requests to classify, embed, regress are merged by their rows")


def changed(path, value):
    made = copy.deepcopy(CONTRACT)
    *folders, last = path.split(".")
    inner = made
    for name in folders:
        inner = inner[name]
    inner[last] = value
    return json.dumps(made)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be an object"),
        (changed("more", 1), "unknown field 'more'"),
        (changed("batching.pool.padding", []), "pool: unknown field 'padding'"),
        (changed("batching", []), "batching must be an object"),
        (changed("batching.nosuch", {}), "no signature 'nosuch'"),
        (changed("batching.nosuch", None), "no signature 'nosuch'"),
        (changed("batching", None), "batching must be an object"),
        (changed("batching.spin", {}), "spin: input 'steps' has no first dimension"),
        (changed("batching.pool.pad", ["nosuch"]), "pad: input 'nosuch' isn't there"),
        (changed("batching.pool.pad", "values"), "pad must be a list of texts"),
        (changed("batching.pool.trim", {"nosuch": "length"}), "output 'nosuch' isn't there"),
        (changed("batching.pool.trim", {"kept": "nosuch"}), "output 'nosuch' isn't there"),
        (changed("batching.pool.trim", {"kept": "total"}), "'total' isn't int64 [B]"),
        (changed("batching.pool.trim", {"total": "length"}), "'total' has no second dimension"),
        (changed("users.signature", "nosuch"), "no signature 'nosuch'"),
        (changed("users.signature", 3), "signature must be a text"),
        (changed("users.encode", "embed"), "'embed': output 'candidates' isn't there"),
        (changed("users.score", "score_and_embed"), "'score_and_embed' takes ['examples'], not"),
        (changed("users.tower_features", ["x"]), "tower_features: 'x' isn't among user_features"),
    ],
)
def test_a_file_that_doesn_t_fit_is_one_clear_message(tmp_path, signatures, text, said):
    with pytest.raises(ServingError) as caught:
        contract.read(write(tmp_path, text), signatures)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert said in caught.value.message and "serving.json" in caught.value.message


def test_such_a_model_doesn_t_load(tmp_path, exports):
    path = shutil.copytree(exports[1.0], tmp_path / "1")
    write(path, "{}}")
    with pytest.raises(ServingError, match=r"1/assets.extra/serving.json: Extra data"):
        Servable(str(path), Options())
