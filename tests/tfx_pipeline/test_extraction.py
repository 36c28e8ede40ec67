"""KEEP's extraction: from exported models to files, the knowledge centre and eq. 6."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import parse_spec
from modules.embeddings.knowledge import read
from modules.models.user_model import UserModel
from modules.preprocessing import table_rows
from modules.training.export import export
from serving.knowledge import MappedStore, lookup
from serving.knowledge import parquet as knowledge_parquet
from tests.data.small import channels_named
from tests.modules.transformed import Transformed, two_phase_spec
from tfx_pipeline import extraction

PLACES = {"home", "été", "work"}


def of(architecture, spec, knowledge, candidates):
    raw = spec.model_dump(mode="json") | {"knowledge": knowledge}
    raw["model"]["architecture"] = architecture
    raw["training"]["pretrain"]["epochs"] = 0
    raw["channels"] = [
        c for c in raw["channels"] if c["scope"] != "candidate" or c["name"] in candidates
    ]
    return parse_spec(raw)


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    place = {"name": "place", "scope": "candidate", "kind": "category", "table": "place"}
    spec = two_phase_spec(
        channels=[*channels_named("item", "place", "tags", "price", "click", "age"), place]
    )
    return Transformed(tmp_path_factory.mktemp("data"), spec)


@pytest.fixture(scope="module")
def extracted(transformed, tmp_path_factory):
    """One folder of both models' vectors, and the models as a server has them."""
    folder = tmp_path_factory.mktemp("extracted") / "7"
    files = [f.replace("*", "0.gz") for f in transformed.fn_args.train_files]
    files = [f.replace("/transformed/", "/raw/") for f in files]
    files.append(files[0].replace("Split-train", "Split-eval"))
    models, counts = {}, {}
    for architecture, knowledge, candidates in (
        ("two_tower", {"item": "item", "category": "place"}, {"item", "place", "tags"}),
        ("din", {"item": "place", "category": "place"}, {"place"}),
    ):
        spec = of(architecture, transformed.spec, knowledge, candidates)
        keras.utils.set_random_seed(1)
        model = UserModel(spec, table_rows(spec, transformed.output))
        model(next(iter(transformed.batches("train"))))
        path = str(tmp_path_factory.mktemp("models") / architecture)
        export(model, transformed.output, path)
        models[architecture] = (model, tf.saved_model.load(path).signatures["serving_default"])
        counts |= extraction.extract(path, files, spec, folder)
    return folder, models, counts


def vectors(folder, kind, *ids):
    table = pq.read_table(folder / f"{kind}.parquet").to_pylist()
    return {tuple(row[i] for i in ids): np.array(row["embedding"], np.float32) for row in table}


def served(transformed, signature, user, item=None, place=b"", tags=()):
    """The click probability of one candidate, the user's newest window before it."""
    for row, example in zip(transformed.raw.to_pylist(), transformed.examples, strict=True):
        if row["window_last"] == [1] and row["user_id"][0].decode() == user:
            request = tf.train.Example.FromString(example)
    features = request.features.feature
    for name in [n for n in features if n.startswith(("target_", "candidate_"))]:
        del features[name]
    if item is not None:
        features["candidate_item"].int64_list.value.append(item)
    features["candidate_place"].bytes_list.value.append(place)
    features["candidate_tags"].bytes_list.value.extend(tags)
    features["candidate_tags_count"].int64_list.value.append(len(tags))
    answer = signature(examples=tf.constant([request.SerializeToString()]))
    return answer["click"].numpy()[0, 0]


def test_every_user_item_and_pair_has_a_row(transformed, extracted):
    folder, _, counts = extracted
    rows = transformed.raw.to_pylist()
    users = {row["user_id"][0].decode() for row in rows}
    items = {str(i) for row in rows for i in row["candidate_item"]} - {"-1"}
    assert {u for (u,) in vectors(folder, "user", "user_id")} == users
    assert {i for (i,) in vectors(folder, "item", "item_id")} == items
    pairs = vectors(folder, "user_category", "user_id", "category")
    assert set(pairs) == {(user, place) for user in users for place in PLACES}
    assert counts == {"user": len(users), "item": len(items), "user_category": len(pairs)}


def test_the_decomposed_model_is_its_vectors_product(transformed, extracted):
    """What is stored is all there is to know: the logit is linear in K_u ⊙ K_i."""
    folder, models, _ = extracted
    model, signature = models["two_tower"]
    users, items = (vectors(folder, kind, f"{kind}_id") for kind in ("user", "item"))
    (kernel, bias) = (w.numpy() for w in model.heads._of_product["click"].weights)
    shown = _shown(transformed)
    for user in ("u0", "u1", "u2"):
        for item in ("0", "1", "2"):
            logit = (users[user,] * items[item,]) @ kernel[:, 0] + bias[0]
            wanted = served(transformed, signature, user, *shown[item])
            np.testing.assert_allclose(1 / (1 + np.exp(-logit)), wanted, atol=1e-5)


def test_the_degenerate_model_is_its_last_hidden_layer(transformed, extracted):
    folder, models, _ = extracted
    model, signature = models["din"]
    pairs = vectors(folder, "user_category", "user_id", "category")
    kernel, bias = (w.numpy() for w in model.heads._towers["click"].logits.weights)
    for user in ("u3", "u4"):
        for place in PLACES:
            logit = pairs[user, place][: len(kernel)] @ kernel[:, 0] + bias[0]
            wanted = served(transformed, signature, user, place=place.encode())
            np.testing.assert_allclose(1 / (1 + np.exp(-logit)), wanted, atol=1e-5)


def test_the_knowledge_centre_and_the_plug_in_read_the_folder(extracted, tmp_path):
    folder, _, counts = extracted
    store = MappedStore(str(tmp_path / "store"))
    store.publish(knowledge_parquet.version_of(folder), knowledge_parquet.read(folder))
    answer = lookup(store, users=["u5", "u5"], items=["0", "1"], categories=["home", "été"])
    user, item = (vectors(folder, kind, f"{kind}_id") for kind in ("user", "item"))
    pair = vectors(folder, "user_category", "user_id", "category")
    wanted = [
        np.concatenate([user["u5",], item[i,], user["u5",] * item[i,], pair["u5", c]])
        for i, c in (("0", "home"), ("1", "été"))
    ]
    np.testing.assert_allclose(answer.concatenated(), wanted, rtol=1e-5)
    assert {kind: len(keys) for kind, (keys, _) in read(str(folder)).items()} == counts


def _shown(transformed):
    """item -> its features at its last target, of train, then of eval instances."""
    shown = {}
    order = np.argsort(transformed.is_eval, kind="stable")
    for example in np.array(transformed.examples, object)[order]:
        features = tf.train.Example.FromString(example).features.feature
        counts = list(features["candidate_tags_count"].int64_list.value)
        ends = np.cumsum(counts)
        tags = list(features["candidate_tags"].bytes_list.value)
        for k, item in enumerate(features["candidate_item"].int64_list.value):
            place = features["candidate_place"].bytes_list.value[k]
            shown[str(item)] = (item, place, tags[ends[k] - counts[k] : ends[k]])
    return shown


def test_a_spec_must_say_what_an_item_is():
    with pytest.raises(ValueError, match="small: no `knowledge` in its spec"):
        extraction.kinds_of(two_phase_spec())
