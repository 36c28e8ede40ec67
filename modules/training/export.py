"""The SavedModel: raw instances in, answers out, Transform's graph inside (docs/contracts.md)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from data.added_tasks import OUTPUTS
from data.channels import DenseChannel
from data.spec import Spec, Task
from modules.features import Batch, as_ragged, newest_events, pad, require_complete_lists
from modules.models import extraction, task_bank
from modules.models.user_model import UserModel
from modules.training.compact import compact

ADDED_TASKS = "added_tasks"
ADDED_TASK_INPUTS = "added_task_inputs"


def export(model: UserModel, transform_output: tft.TFTransformOutput, folder: str) -> None:
    """Writes the signatures of docs/contracts.md and their `serving.json` to `folder`.

    A model whose heads read events has no `score`, nor what goes with it: its answers don't
    follow from H.

    Every signature goes through Transform's graph and `modules.features.pad`, as training does.
    Saved are the variables that they read: no optimizer state, and no Keras layers.
    """
    spec = model.spec
    raw_spec = _request_spec(transform_output, spec)
    plugs_in = spec.knowledge is not None  # Transform then makes a key of the user's id.
    transform = transform_output.transform_features_layer()

    def batch_of(raw: dict[str, tf.RaggedTensor]) -> Batch:
        # Past Keras' __call__: it would note the inputs, and saving would trace the layer again.
        ragged = as_ragged(transform.call(raw), spec)
        return pad(newest_events(require_complete_lists(ragged, spec), spec), spec)

    def parse(examples: tf.Tensor) -> tuple[tf.Tensor, Batch]:
        raw = tf.io.parse_example(examples, raw_spec)
        user_id = raw.pop("user_id")
        if plugs_in:
            raw["user_id"] = user_id[:, tf.newaxis]
        return user_id, batch_of(raw)

    examples_only = [tf.TensorSpec([None], tf.string, name="examples")]

    @tf.function(autograph=False, input_signature=examples_only)
    def serving_default(examples):
        user_id, batch = parse(examples)
        return _answers(model.serve(batch), batch, spec) | {"user_id": user_id}

    @tf.function(autograph=False, input_signature=examples_only)
    def embed(examples):
        user_id, batch = parse(examples)
        return {"embedding": model.user_embedding(batch), "user_id": user_id}

    @tf.function(autograph=False, input_signature=examples_only)
    def score_and_embed(examples):
        user_id, batch = parse(examples)
        user = model.user_embedding(batch)
        answers = _answers(model.score(user, batch), batch, spec)
        return answers | {"user_id": user_id, "embedding": user}

    embedding = tf.TensorSpec([None, spec.model.hidden_dim], tf.float32, name="embedding")

    @tf.function(autograph=False, input_signature=[*examples_only, embedding])
    def score(examples, embedding):
        user_id, batch = parse(examples)
        return _answers(model.score(embedding, batch), batch, spec) | {"user_id": user_id}

    @tf.function(autograph=False, input_signature=examples_only)
    def extract(examples):
        user_id, batch = parse(examples)
        count = tf.reduce_sum(tf.cast(batch["target_mask"], tf.int64), axis=1)
        vectors = extraction.extract(model, batch)
        return vectors | {"user_id": user_id, "target_count": count}

    @tf.function(autograph=False)
    def added_tasks(examples, **weights):
        user_id, batch = parse(examples)
        answers = task_bank.answers(model, batch, task_bank.TaskWeights(**weights))
        return answers | {"user_id": user_id}

    @tf.function(autograph=False, input_signature=examples_only)
    def added_task_inputs(examples):
        _, batch = parse(examples)
        count = tf.reduce_sum(tf.cast(batch["target_mask"], tf.int64), axis=1)
        return task_bank.at_targets(model, batch)._asdict() | {"target_count": count}

    @tf.function(autograph=False)
    def predict(**tensors):
        ragged = _ragged_from_padded(tensors, spec)
        raw = {name: _as_declared(value, raw_spec[name]) for name, value in ragged.items()}
        if plugs_in:
            raw["user_id"] = tensors["user_id"][:, tf.newaxis]
        batch = batch_of(raw)
        return _answers(model.serve(batch), batch, spec)

    signatures = {
        "serving_default": serving_default.get_concrete_function(),
        "embed": embed.get_concrete_function(),
        "predict": predict.get_concrete_function(**_padded_inputs(raw_spec, spec)),
    }
    if spec.knowledge is not None and not spec.knowledge.path and extraction.possible(model):
        signatures["extract"] = extract.get_concrete_function()
    if model.splits_at_user:
        signatures["score_and_embed"] = score_and_embed.get_concrete_function()
        signatures["score"] = score.get_concrete_function()
    if spec.model.added_tasks:
        weights = task_bank.weight_specs(model)
        signatures[ADDED_TASKS] = added_tasks.get_concrete_function(*examples_only, **weights)
        signatures[ADDED_TASK_INPUTS] = added_task_inputs.get_concrete_function()
    read = {v.ref(): v for signature in signatures.values() for v in signature.variables}
    saved = tf.Module()
    saved.transform = transform  # with its vocabularies
    saved.weights = list(read.values())
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(saved, folder, signatures=signatures, options=options)
    compact(folder)
    _write_contract(model, signatures, folder)


def _write_contract(model: UserModel, signatures: Mapping[str, Any], folder: str) -> None:
    """`assets.extra/serving.json`: how requests may be merged, what a user's H depends on, and
    whose tasks may be added."""
    spec = model.spec
    trim = {task.name: "target_count" for task in spec.tasks if task.per == "impression"}
    batching: dict = {name: {"pad": [], "trim": trim} for name in signatures}
    batching["embed"] = {"pad": [], "trim": {}}
    if "extract" in batching:
        of_targets = dict.fromkeys(("item", "user_item"), "target_count")
        batching["extract"] = {"pad": [], "trim": of_targets}
    for name, outputs in (
        (ADDED_TASKS, ["impression"]),
        (ADDED_TASK_INPUTS, task_bank.Given._fields),
    ):
        if name in batching:
            batching[name] = {"pad": [], "trim": dict.fromkeys(outputs, "target_count")}
    batching["predict"] = {"pad": [c.feature for c in spec.channels], "trim": trim}
    contract: dict = {"batching": batching}
    if model.splits_at_user:
        contract["users"] = _user_split(spec)
    if ADDED_TASKS in signatures:
        contract["added_tasks"] = {
            "signature": ADDED_TASKS,
            "backbone": fingerprint(signatures[ADDED_TASKS].variables),
            "outputs": OUTPUTS,
        }
    path = os.path.join(folder, "assets.extra", "serving.json")
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(contract, indent=2))


def fingerprint(variables: Iterable[tf.Variable]) -> str:
    """Of a backbone's weights: tasks were trained on these or on others."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()[:16]


def _user_split(spec: Spec) -> dict:
    return {
        "signature": "serving_default",
        "encode": "score_and_embed",
        "score": "score",
        "user_features": _features(spec.scope("sequence") + spec.encoder_context),
        "tower_features": _features(spec.encoder_context),
        "bypass": ["target_position"],
    }


def _features(channels: tuple) -> list[str]:
    """The channels' names in a raw instance."""
    multi_valued = [c for c in channels if getattr(c, "multi_valued", False)]
    return [c.feature for c in channels] + [c.count_feature for c in multi_valued]


def _answers(logits_of: dict[str, tf.Tensor], batch: Batch, spec: Spec) -> dict[str, tf.Tensor]:
    """Probabilities (regression: values) of every task, padding targets read 0; and how many
    targets each row really has."""
    mask = batch["target_mask"]
    answers = {"target_count": tf.reduce_sum(tf.cast(mask, tf.int64), axis=1)}
    for name, logits in logits_of.items():
        task = spec.task(name)
        answer = _activate(task, logits)
        if task.per == "impression":
            answer = tf.where(mask[..., tf.newaxis] if task.classes else mask, answer, 0.0)
        answers[name] = answer
    return answers


def _activate(task: Task, logits: tf.Tensor) -> tf.Tensor:
    if task.type == "binary":
        return tf.sigmoid(logits)
    return tf.nn.softmax(logits) if task.type == "multiclass" else logits


def _request_spec(transform_output: tft.TFTransformOutput, spec: Spec) -> dict:
    """What a request may hold: the channels, `target_position`, `user_id`. All optional."""
    wanted = {"target_position"}
    for channel in spec.channels:
        wanted.add(channel.feature)
        if getattr(channel, "multi_valued", False):
            wanted.add(channel.count_feature)
    known = transform_output.raw_feature_spec().items()
    raw = {name: _optional(feature) for name, feature in known if name in wanted}
    return raw | {"user_id": tf.io.FixedLenFeature([], tf.string, default_value="")}


def _optional(feature: Any) -> Any:
    """A value the schema says is always there is a missing one where a request leaves it out."""
    if not isinstance(feature, tf.io.FixedLenFeature):
        return feature
    missing = {tf.string: "", tf.int64: -1, tf.float32: float("nan")}[feature.dtype]
    default = [missing] * (feature.shape[0] if feature.shape else 1)
    return tf.io.FixedLenFeature(feature.shape, feature.dtype, default_value=default)


def _padded_inputs(raw_spec: dict, spec: Spec) -> dict[str, tf.TensorSpec]:
    """Tensor specs of `predict`: one dense tensor a channel, and the real lengths."""
    shapes = {"sequence": [None, None], "candidate": [None, None], "context": [None]}
    inputs = {
        c.feature: tf.TensorSpec(
            shapes[c.scope] + ([None] if getattr(c, "multi_valued", False) else []),
            raw_spec[c.feature].dtype,
            name=c.feature,
        )
        for c in spec.channels
    }
    for name in ("sequence_length", "target_count"):
        inputs[name] = tf.TensorSpec([None], tf.int64, name=name)
    if spec.knowledge is not None:
        inputs["user_id"] = tf.TensorSpec([None], tf.string, name="user_id")
    return inputs


def _as_declared(value: tf.RaggedTensor, feature: Any) -> tf.Tensor | tf.RaggedTensor:
    """Transform's graph takes what the schema says has one value as dense [B, 1]."""
    if isinstance(feature, tf.io.FixedLenFeature):
        return tf.reshape(value.flat_values, [-1, *feature.shape])
    return value


def _ragged_from_padded(tensors: dict[str, tf.Tensor], spec: Spec) -> dict[str, tf.RaggedTensor]:
    ones = tf.ones_like(tensors["sequence_length"])
    counts = {
        "sequence": tensors["sequence_length"],
        "candidate": tensors["target_count"],
        "context": ones,
    }
    raw = {}
    for channel in spec.channels:
        value = tensors[channel.feature]
        if channel.scope == "context":
            value = value[:, tf.newaxis]
        ragged = tf.RaggedTensor.from_tensor(value, lengths=counts[channel.scope])
        if isinstance(channel, DenseChannel) or not channel.multi_valued:
            raw[channel.feature] = ragged
            continue
        values = ragged.flat_values  # [events, V]
        missing = "" if values.dtype == tf.string else -1
        present = tf.not_equal(values, missing)
        per_event = tf.reduce_sum(tf.cast(present, tf.int64), axis=1)
        count = tf.RaggedTensor.from_row_splits(per_event, ragged.row_splits)
        raw[channel.count_feature] = count
        raw[channel.feature] = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(values, present), tf.reduce_sum(count, axis=1)
        )
    return raw
