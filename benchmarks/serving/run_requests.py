"""Serving requests out of a run's instances."""

from __future__ import annotations

import glob
import itertools
import pathlib
import uuid
from collections.abc import Iterator

from serving import protos, tensors
from serving.client.instances import open_instances, read_instances

_SERVED = ("sequence_", "context_", "candidate_")


def pushed_model(run: pathlib.Path) -> pathlib.Path:
    """The folder of the newest version a run pushed. Raises SystemExit if there is none."""
    versions = [path for path in run.glob("serving/*/*") if path.name.isdigit()]
    if not versions:
        raise SystemExit(f"{run}: nothing was pushed there; make one with: make run")
    return max(versions, key=lambda path: int(path.name))


def users(run: pathlib.Path) -> list[protos.Example]:
    """What an application would ask about: each eval instance without labels and positions."""
    pattern = str(run / "pipeline" / "SequenceExampleGen" / "examples" / "*" / "Split-eval" / "*")
    instances = []
    for path in sorted(glob.glob(pattern))[-1:]:
        with open_instances(path) as file:
            records = list(read_instances(file))
        for record in records:
            whole = protos.Example.FromString(record)
            asked = protos.Example()
            for name, feature in whole.features.feature.items():
                if name == "user_id" or name.startswith(_SERVED):
                    asked.features.feature[name].CopyFrom(feature)
            if any(name.startswith("candidate_") for name in asked.features.feature):
                instances.append(asked)
    if not instances:
        raise SystemExit(f"{run}: no eval instances with candidates at {pattern}")
    return instances


def with_candidates(user: protos.Example, count: int) -> protos.Example:
    """The user with `count` candidates, their own ones over and over."""
    asked = protos.Example.FromString(user.SerializeToString())
    for name, feature in asked.features.feature.items():
        if name.startswith("candidate_"):
            values = getattr(feature, feature.WhichOneof("kind")).value
            repeated = list(itertools.islice(itertools.cycle(list(values)), count))
            del values[:]
            values.extend(repeated)
    return asked


def fresh(instances: list[protos.Example]) -> Iterator[bytes]:
    """Serialized instances without end, no user twice, not in any two calls either."""
    for user in itertools.cycle(instances):
        asked = protos.Example.FromString(user.SerializeToString())
        asked.features.feature["user_id"].bytes_list.value[:] = [uuid.uuid4().hex.encode()]
        yield asked.SerializeToString()


def predict_request(model: str, examples: list[bytes]) -> bytes:
    """A serialized PredictRequest to `serving_default`."""
    request = protos.PredictRequest()
    request.model_spec.name = model
    request.inputs["examples"].dtype = tensors.STRING
    request.inputs["examples"].tensor_shape.dim.add().size = len(examples)
    request.inputs["examples"].string_val.extend(examples)
    return request.SerializeToString()
