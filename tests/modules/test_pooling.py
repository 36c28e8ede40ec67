"""From positions to H: each pooling against NumPy, and its prefixes against itself; and that the
model has the one which its spec names."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.architectures import LAYERED
from modules.features import as_ragged, pad
from modules.layers.pooling import LAST, MAX, MAX_MEAN, MEAN, POOLINGS
from modules.models.user_model import UserModel
from tests.modules.conftest import ROWS, make_spec, random_instances


def halves(h):
    half = h.shape[-1] // 2
    return np.concatenate([h[:, :half].max(0), h[:, half:].mean(0)])


REFERENCE = {
    "max": (MAX, lambda h: h.max(0)),
    "mean": (MEAN, lambda h: h.mean(0)),
    "max_mean": (MAX_MEAN, halves),
    "last": (LAST, lambda h: h[-1]),
}
LENGTHS = [1, 4, 6]


@pytest.fixture(params=REFERENCE)
def pooling(request):
    return REFERENCE[request.param]


@pytest.fixture
def hidden():
    return tf.random.stateless_normal([3, 6, 4], seed=[0, 0])


def mask():
    return tf.sequence_mask(LENGTHS, 6)


def test_whole(pooling, hidden):
    (whole, _), reference = pooling
    expected = [reference(h[:length]) for h, length in zip(hidden.numpy(), LENGTHS, strict=True)]
    np.testing.assert_allclose(whole(hidden, mask()), expected, rtol=1e-6)


def test_prefixes(pooling, hidden):
    (_, prefixes), reference = pooling
    found = prefixes(hidden, mask()).numpy()
    for row, length in enumerate(LENGTHS):
        for end in range(1, length + 1):
            expected = reference(hidden.numpy()[row, :end])
            np.testing.assert_allclose(found[row, end - 1], expected, rtol=1e-5, atol=1e-6)


def test_nothing_visible_is_zero(pooling, hidden):
    (whole, _), _ = pooling
    np.testing.assert_array_equal(whole(hidden, tf.zeros([3, 6], tf.bool)), np.zeros((3, 4)))


def model_with(spec, **changes):
    """The same weights whatever the pooling."""
    keras.utils.set_random_seed(1)
    model = spec.model.model_copy(update=changes)
    return UserModel(spec.model_copy(update={"model": model}), ROWS)


@pytest.mark.parametrize("architecture", sorted(LAYERED))
def test_h_is_pooled_as_the_spec_says(architecture):
    spec = make_spec()
    batch = pad(as_ragged(random_instances(spec, [5, 20, 9], [1, 1, 1]), spec), spec)
    found = {}
    for word in POOLINGS:
        model = model_with(spec, architecture=architecture, pooling=word)
        encoded = model.encode_all(batch)
        _, reference = REFERENCE[word]
        visible = zip(encoded.hidden.numpy(), encoded.mask.numpy(), strict=True)
        found[word] = model.user_embedding(batch).numpy()
        expected = [reference(h[seen]) for h, seen in visible]
        np.testing.assert_allclose(found[word], expected, rtol=1e-5, atol=1e-6)
    assert (found["max"] > found["mean"]).all()


@pytest.mark.parametrize("word", POOLINGS)
def test_h_at_the_end_of_the_history_is_pooled_the_same_way(spec, word):
    """By `call`, which pools at every target, by `serve`, and by `score` of an H made before."""
    model = model_with(spec, architecture="nextitnet", pooling=word)
    features = random_instances(spec, [5, 20, 9], [3, 2, 6])
    del features["target_position"]  # All targets are at the end.
    batch = pad(as_ragged(features, spec), spec)
    at_targets, _ = model(batch)
    served, scored = model.serve(batch), model.score(model.user_embedding(batch), batch)
    real = batch["target_mask"].numpy()
    for task in spec.tasks:
        called = at_targets[task.name].numpy()
        for answer in (served[task.name].numpy(), scored[task.name].numpy()):
            if task.per == "user":
                answer = np.repeat(answer[:, np.newaxis], real.shape[1], axis=1)
            np.testing.assert_allclose(called[real], answer[real], atol=1e-5)
