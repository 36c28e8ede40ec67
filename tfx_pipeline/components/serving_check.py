"""ServingCheck: the candidate model must answer real requests in the real server before a push.

It loads the model in a `serving.server` subprocess, replays raw instances of the eval split
through the `serving_default` and `embed` signatures, and compares with the SavedModel run in
process. Its output is what `Pusher(infra_blessing=…)` asks for. InfraValidator, TFX's own, needs
docker.
"""

# No `from __future__ import annotations`: TFX reads this module's annotations as objects.

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, InfraBlessing, Model
from tfx.utils import io_utils, path_utils

from data import spec as spec_lib
from serving import errors
from serving.client import Client
from serving.local import local_server
from serving.protos import Example

EVAL_SPLIT = "eval"
SIGNATURES = ("serving_default", "embed")
TOLERANCE = 1e-5
"""Largest absolute difference between the server's and the in-process prediction."""
BATCH_SIZE = 8
_NAME = "candidate"


class ServingCheckError(RuntimeError):
    """The candidate model can't be served; the message says why, and nothing is pushed."""


@component
def ServingCheck(
    model: InputArtifact[Model],
    examples: InputArtifact[Examples],
    blessing: OutputArtifact[InfraBlessing],
    spec: Parameter[str],
    num_examples: Parameter[int] = 32,
    load_seconds: Parameter[int] = 120,
    code: Parameter[str] = "",
) -> None:
    """Blesses a model that the real server loads and answers with correctly.

    Args:
      model: the candidate.
      examples: raw instances; the eval split is replayed.
      blessing: for Pusher: `INFRA_BLESSED`, or `INFRA_NOT_BLESSED` with the reason.
      spec: the spec as JSON.
      num_examples: how many instances are replayed.
      load_seconds: how long loading may take.
      code: hash of what runs here; TFX's cache looks at parameters, not at code.

    Raises:
      ServingCheckError: the model doesn't load, an answer is wrong, or there is nothing to ask.
    """
    path = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
    parsed = spec_lib.Spec.model_validate_json(spec)
    try:
        instances = _read_instances(examples, num_examples)
        _replay(path, parsed, instances, load_seconds)
    except (ServingCheckError, errors.ServingError) as error:
        _write(blessing, "INFRA_NOT_BLESSED", str(error), blessed=False)
        raise ServingCheckError(f"the model at {path} fails in the server: {error}") from None
    _write(blessing, "INFRA_BLESSED", "", blessed=True)
    logging.info("ServingCheck: %d instances answered as in process", len(instances))


def _write(blessing, name: str, reason: str, *, blessed: bool) -> None:
    io_utils.write_string_file(os.path.join(blessing.uri, name), reason)
    blessing.set_int_custom_property("blessed", int(blessed))


def _read_instances(examples: Examples, count: int) -> list[bytes]:
    folder = artifact_utils.get_split_uri([examples], EVAL_SPLIT)
    files = sorted(fileio.glob(io_utils.all_files_pattern(folder)))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP")
    instances = list(records.take(count).as_numpy_iterator())
    if not instances:
        raise ServingCheckError(f"the {EVAL_SPLIT} split in {folder} has no instances to replay")
    return instances


def _replay(
    path: str, spec: spec_lib.Spec, instances: Sequence[bytes], load_seconds: float
) -> None:
    with tempfile.TemporaryDirectory() as base_path:
        pathlib.Path(base_path, "1").symlink_to(pathlib.Path(path).absolute())
        with (
            local_server(base_path, _NAME, deadline=load_seconds) as server,
            Client(server.target) as client,
        ):
            loaded = tf.saved_model.load(path)
            missing = set(SIGNATURES) - set(loaded.signatures)
            if missing:
                raise ServingCheckError(f"it lacks the signatures {sorted(missing)}")
            for start in range(0, len(instances), BATCH_SIZE):
                batch = list(instances[start : start + BATCH_SIZE])
                for signature in SIGNATURES:
                    inputs = {"examples": batch}
                    served = client.predict(_NAME, inputs, signature=signature, timeout=60.0)
                    expected = loaded.signatures[signature](examples=tf.constant(batch))
                    check_equal(signature, served, {k: v.numpy() for k, v in expected.items()})
                    check_answer(spec, signature, served, batch)


def check_equal(
    signature: str, served: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    """Raises `ServingCheckError` unless the outputs equal the in-process ones to `TOLERANCE`."""
    if set(served) != set(expected):
        raise ServingCheckError(
            f"{signature}: the server returns {sorted(served)}, the model {sorted(expected)}"
        )
    for name, array in served.items():
        wanted = expected[name]
        if array.shape != wanted.shape:
            raise ServingCheckError(
                f"{signature}: {name} has shape {array.shape} from the server, {wanted.shape} here"
            )
        if array.dtype == object:
            equal = bool((array == wanted).all())
        else:
            equal = np.allclose(array, wanted, rtol=0.0, atol=TOLERANCE, equal_nan=True)
        if not equal:
            raise ServingCheckError(f"{signature}: {name} differs between server and process")


def check_answer(
    spec: spec_lib.Spec,
    signature: str,
    outputs: Mapping[str, np.ndarray],
    instances: Sequence[bytes],
) -> None:
    """Checks the contract of a signature (docs/contracts.md).

    Args:
      outputs: per task [B, K] or [B] (multiclass: and a last axis of its classes), `embedding`
        [B, D], `user_id` [B].
      instances: the B serialized instances asked about.

    Raises:
      ServingCheckError: an output is missing, not finite, of a wrong shape, or no probability.
    """
    parsed = [Example.FromString(instance) for instance in instances]
    users = [p.features.feature["user_id"].bytes_list.value[0] for p in parsed]
    if "user_id" not in outputs or outputs["user_id"].tolist() != users:
        raise ServingCheckError(f"{signature}: user_id isn't that of the instances")
    if signature == "embed":
        embedding = _output(outputs, signature, "embedding")
        if embedding.ndim != 2 or len(embedding) != len(users):
            raise ServingCheckError(f"embed: embedding has shape {embedding.shape}, not [B, D]")
        return
    targets = max(len(p.features.feature["target_position"].int64_list.value) for p in parsed)
    for task in spec.tasks:
        array = _output(outputs, signature, task.name)
        shape = (len(users), targets) if task.per == "impression" else (len(users),)
        if task.type == "multiclass":
            shape += (len(task.classes),)
        if array.shape != shape:
            raise ServingCheckError(f"{task.name} has shape {array.shape}, should have {shape}")
        if task.type != "regression" and array.size and not 0 <= array.min() <= array.max() <= 1:
            raise ServingCheckError(f"{task.name} isn't a probability: {array.min()}…{array.max()}")


def _output(outputs: Mapping[str, np.ndarray], signature: str, name: str) -> np.ndarray:
    if name not in outputs:
        raise ServingCheckError(f"{signature} has no output {name!r}, only {sorted(outputs)}")
    if not np.isfinite(outputs[name]).all():
        raise ServingCheckError(f"{signature}: {name} isn't finite")
    return outputs[name]
