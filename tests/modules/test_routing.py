import numpy as np
import tensorflow as tf

from modules.layers import routing

LOGITS = np.array([[2.0, 0, 0], [0, 1, 0], [0, 3, 1], [9, 0, 0], [0, 0, 1]], "float32")
MASK = np.array([True, True, True, False, True])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_exact_routes_of_five_tokens():
    plan = routing.route(tf.constant(LOGITS), tf.constant(MASK))
    np.testing.assert_array_equal(plan.expert_T, [0, 1, 1, 3, 2])  # 3: padding, no expert
    expected = softmax(LOGITS).max(-1) * MASK
    np.testing.assert_allclose(plan.gate_T, expected, rtol=1e-6)
    np.testing.assert_allclose(plan.load_E, [0.25, 0.5, 0.25])


def test_losses_match_numpy():
    plan = routing.route(tf.constant(LOGITS), tf.constant(MASK))
    valid = LOGITS[MASK]
    load = np.array([0.25, 0.5, 0.25])
    np.testing.assert_allclose(
        plan.load_balance_loss, 3 * np.sum(load * softmax(valid).mean(0)), rtol=1e-6
    )
    lse = np.log(np.exp(valid).sum(-1))
    np.testing.assert_allclose(plan.z_loss, np.mean(lse**2), rtol=1e-6)


def test_balance_loss_is_one_when_balanced_and_num_experts_when_collapsed():
    mask = tf.ones([4], tf.bool)
    balanced = routing.route(100 * tf.eye(4), mask)
    collapsed = routing.route(tf.tile([[100.0, 0, 0, 0]], [4, 1]), mask)
    np.testing.assert_allclose(balanced.load_balance_loss, 1, rtol=1e-6)
    np.testing.assert_allclose(collapsed.load_balance_loss, 4, rtol=1e-6)


def test_balance_gradient_pushes_probability_off_the_crowded_expert():
    logits = tf.constant([[0.2, 0.0], [0.3, 0.0], [0.1, 0.0], [0.0, 0.1]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = routing.route(logits, tf.ones([4], tf.bool)).load_balance_loss
    gradient = tape.gradient(loss, logits).numpy()
    assert (gradient[:, 0] > 0).all() and (gradient[:, 1] < 0).all()


def test_padding_counts_for_nothing():
    short = routing.route(tf.constant(LOGITS[MASK]), tf.ones([4], tf.bool))
    full = routing.route(tf.constant(LOGITS), tf.constant(MASK))
    for name in ("load_balance_loss", "z_loss", "load_E"):
        np.testing.assert_allclose(getattr(short, name), getattr(full, name), rtol=1e-6)


def test_nothing_but_padding():
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        plan = routing.route(logits, tf.zeros([5], tf.bool))
        loss = plan.load_balance_loss + plan.z_loss + tf.reduce_sum(plan.gate_T)
    assert loss.numpy() == 0
    np.testing.assert_array_equal(plan.load_E, [0, 0, 0])
    np.testing.assert_array_equal(tape.gradient(loss, logits), np.zeros_like(LOGITS))


def test_router_stays_float32_under_mixed_precision():
    import tf_keras as keras

    router = routing.Router(4, dtype=keras.mixed_precision.Policy("mixed_float16"))
    plan = router(tf.ones([3, 8], tf.float16), tf.ones([3], tf.bool))
    assert router.logits.kernel.dtype == plan.gate_T.dtype == plan.z_loss.dtype == tf.float32
