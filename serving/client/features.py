"""One user's features to a serialized `tf.Example`, checked against the model's own spec.

The spec is what the signature `predict` takes (docs/contracts.md): `sequence_<channel>` [B, L],
`candidate_<channel>` [B, K], `context_<channel>` [B], and one axis more where a channel has
several values. So it needs no file beside the model, and any server can tell it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from serving import errors
from serving.client.example import ExampleError, example
from serving.client.signatures import Signature, TensorSpec
from serving.errors import invalid

SPEC_SIGNATURE = "predict"

_AXES = {"sequence": 1, "candidate": 1, "context": 0}
"""Scope -> axes of a single-valued feature, without the batch's."""

_NOT_FEATURES = {"sequence_length", "target_count"}
"""Inputs of `predict` that lists of real length don't need."""

_EXTRA = {
    "user_id": TensorSpec("string", (None,)),
    "target_position": TensorSpec("int64", (None, None)),
}
"""What an instance may hold beside its channels."""

_KINDS: dict[str, tuple[Callable[[Any], bool], Callable, object]] = {
    "string": (lambda value: isinstance(value, str | bytes), lambda text: text, ""),
    # JSON's writers make 3.0 of a whole number whose column has missing values.
    "int64": (lambda value: isinstance(value, int | float) and value == value // 1, int, -1),
    "float32": (lambda value: isinstance(value, float | int), float, float("nan")),
}
"""dtype -> whether it takes a value, how that is cast, and a missing value."""


def feature_specs(signatures: Mapping[str, Signature], model: str) -> dict[str, TensorSpec]:
    """The features of a user, with the batch's axis.

    Raises:
      errors.ServingError: FAILED_PRECONDITION, the model doesn't say.
    """
    if SPEC_SIGNATURE not in signatures:
        raise errors.ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"model {model!r} has no signature {SPEC_SIGNATURE!r}, which says what features it"
            " takes; send it serialized examples by predict()",
        )
    inputs = signatures[SPEC_SIGNATURE].inputs
    specs = _EXTRA | {name: spec for name, spec in inputs.items() if name not in _NOT_FEATURES}
    for name, spec in specs.items():
        if _scope(name) not in _AXES or spec.dtype not in _KINDS or spec.shape is None:
            raise errors.ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"input {name!r} ({spec.dtype}) of {SPEC_SIGNATURE!r} of model {model!r} is no"
                " sequence_, candidate_ or context_ feature; send serialized examples by predict()",
            )
    return specs


def typed_example(specs: Mapping[str, TensorSpec], features: Mapping[str, object]) -> bytes:
    """A serialized `tf.Example`.

    Args:
      specs: of `feature_specs`.
      features: name -> list or array: [L] for a sequence, [K] for candidates, a value for
        context; of lists where a channel has several values. None is a missing value; a feature
        left out is missing altogether. Whole numbers do for a float feature, and 3.0 for an
        int feature.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, naming the feature: an unknown name, a value of
        another type, another number of axes, or lists of different lengths.
    """
    if not isinstance(features, Mapping):
        raise invalid(f"a user is a dictionary of features, got a {type(features).__name__}")
    written: dict[str, object] = {}
    lengths: dict[str, dict[str, int]] = {"sequence": {}, "candidate": {}}
    for name, value in features.items():
        if name not in specs:
            raise invalid(_unknown(name, specs))
        spec, scope = specs[name], _scope(name)
        places = _listed(value) if _AXES[scope] else [_plain(value)]
        if len(spec.shape or ()) - 1 > _AXES[scope]:
            groups = [_group(name, place) for place in places]
            written[f"{name}_count"] = [len(group) for group in groups]
            values = [each for group in groups for each in group]
        else:
            values = places
        written[name] = _values(name, values, spec.dtype)
        if scope in lengths and places:
            lengths[scope][name] = len(places)
    for scope, counts in lengths.items():
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise invalid(f"{scope} features of one user have one length; got {told}")
    try:
        return example(written)
    except ExampleError as error:
        raise invalid(str(error)) from None


def _scope(name: str) -> str:
    return {"user_id": "context", "target_position": "candidate"}.get(name) or name.split("_")[0]


def _unknown(name: str, specs: Mapping[str, TensorSpec]) -> str:
    close = difflib.get_close_matches(name, specs, n=3, cutoff=0.5)
    if close:
        return f"the model has no feature {name!r}; did you mean {' or '.join(close)}?"
    return f"the model has no feature {name!r}; it has: {', '.join(sorted(specs))}"


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _listed(value: object) -> list:
    value = _plain(value)
    if value is None:
        return []
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else [value]


def _group(name: str, value: object) -> list:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise invalid(f"{name}: takes a list of values in each place, got {value!r:.40}")
    return [_plain(v) for v in value]


def _values(name: str, values: Sequence[object], dtype: str) -> list:
    takes, cast, missing = _KINDS[dtype]
    written: list = []
    for value in values:
        if value is None:
            written.append(missing)
            continue
        if isinstance(value, list | tuple):
            raise invalid(f"{name}: takes one value in each place, got the list {value!r:.40}")
        if not takes(value):
            raise invalid(f"{name}: expected {dtype}, got {value!r:.40} ({type(value).__name__})")
        written.append(cast(value))
    return written
