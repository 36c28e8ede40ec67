"""The models to compare, each the run's spec with some keys changed.

    --models=supermoe,bert,wide=model.hidden_dim:128,model.ffn_dim:256,click-only=tasks:[click]

An architecture's word stands for itself; `name=key:value,…` is a model of that name. A key is the
dotted path of one of the spec's, `tasks.click.weight` that of the task (or channel) of that name,
and a list of names keeps those tasks alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import yaml
from absl import flags

from data.architectures import LAYERED, OWN_PRETRAINING
from data.spec import Model, Spec, SpecError, parse_spec

_COMMA = re.compile(r",(?![^\[]*\])")
"""Not within a list."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_ARCHITECTURE = "model.architecture"
_PRETRAINING = "training.pretrain.epochs"
_FREE = {
    "sequence": {"targets"},
    "channels": {"dim", "mask_prediction"},
    "tasks": {"exclude", "group_by", "loss", "weight", "thresholds"},
    "knowledge": {"path"},
    "domain": {"train_on"},
}
"""By part of a spec, what neither instances nor Transform's output depend on."""
_DATA = (
    "name",
    "source",
    "user",
    "time",
    "sequence",
    "channels",
    "tasks",
    "split",
    "knowledge",
    "domain",
)


class Variant(NamedTuple):
    """A model to compare: its name in the tables, its spec, and what was asked for."""

    name: str
    spec: Spec
    overrides: dict[str, Any]


def parse_variants(
    text: str, base: Spec, epochs: Mapping[str, int], is_pretrained: Callable[[str], bool]
) -> list[Variant]:
    """Args:
      text: of `--models`.
      base: the finished run's spec.
      epochs: by phase, instead of the spec's, the same for all models.
      is_pretrained: whether an architecture has a pre-training; without, it is fine-tuned alone.

    Raises:
      flags.Error: a name is used twice or isn't one, or a change needs other instances.
      SpecError: a spec isn't valid; names the model.
    """
    budget = {f"training.{phase}.epochs": count for phase, count in epochs.items()}
    return [
        Variant(name, _changed(name, base, budget, changes, is_pretrained), changes)
        for name, changes in _asked(text).items()
    ]


def seeded(variant: Variant, seed: int) -> Spec:
    """The spec of one training."""
    raw = variant.spec.model_dump(mode="json")
    raw["training"]["seed"] = seed
    return parse_spec(raw, variant.name)


def _asked(text: str) -> dict[str, dict[str, Any]]:
    """Name -> overrides, in the order asked for."""
    asked: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] | None = None
    for item in filter(None, map(str.strip, _COMMA.split(text))):
        name, named, override = item.partition("=")
        if not named and ":" in item:
            if current is None:
                raise flags.Error(f"--models: {item!r} follows no `name=`, which it would change")
            name, override = "", item
        if name:
            if not _NAME.fullmatch(name):
                raise flags.Error(f"--models: {name!r} is no name; take letters, digits, '-._'")
            if name in asked:
                raise flags.Error(f"--models: {name!r} is there twice")
            current = asked[name] = {}
            if not named:
                current[_ARCHITECTURE] = name
                current = None
        if override:
            assert current is not None
            key, colon, value = override.partition(":")
            if not colon:
                raise flags.Error(
                    f"--models: {override!r} isn't `key:value`, as model.num_blocks:3"
                )
            try:
                current[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise flags.Error(f"--models: {override!r}: the value isn't YAML") from None
    if not asked:
        raise flags.Error("--models: give at least one, as supermoe,bert")
    return asked


def _changed(
    name: str,
    base: Spec,
    budget: Mapping[str, int],
    changes: Mapping[str, Any],
    is_pretrained: Callable[[str], bool],
) -> Spec:
    where = f"--models: {name}"
    model = _applied(base.model_dump(mode="json"), changes, where)["model"]
    word = model.get("architecture") if isinstance(model, dict) else None
    known = word in get_args(Model.model_fields["architecture"].annotation)
    raw = base.model_dump(mode="json")
    if known:  # else the spec's to refuse
        if not is_pretrained(word):
            if changes.get(_PRETRAINING):
                raise flags.Error(f"{where}: {word} has no pre-training; leave out {_PRETRAINING}")
            budget = {key: count for key, count in budget.items() if key != _PRETRAINING}
        _leave_out(raw, word, is_pretrained(word))
    raw = _applied(raw, {**budget, **changes}, where)
    spec = parse_spec(raw, where)
    for part in _DATA:
        if not _alike(part, spec, base):
            raise flags.Error(
                f"{where} changes {part!r}, which the run's instances were made with;"
                " run the pipeline with a spec of that kind and compare there"
            )
    return spec


def _leave_out(raw: dict[str, Any], word: str, is_pretrained: bool) -> None:
    """What the run has and its architecture may, but this one doesn't take."""
    raw["model"]["added_tasks"] = False  # nothing is served
    if word not in LAYERED:
        raw["model"]["pooling"] = None
    pretrain = raw["training"]["pretrain"]
    if word in OWN_PRETRAINING:
        del pretrain["objective"], pretrain["s3"]
    if not is_pretrained:
        pretrain["epochs"] = 0
        raw["training"]["finetune"]["pretraining_weight"] = 0.0


def _applied(raw: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The raw spec, changed in place. Raises `SpecError` for a key that it hasn't."""
    for key, value in changes.items():
        try:
            _set(raw, key.split("."), value)
        except KeyError as error:
            raise SpecError(f"{where}: {key}: {error.args[0]}") from None
    return raw


def _set(node: Any, path: list[str], value: Any) -> None:
    """Changes a key of a raw spec in place. Raises `KeyError` with a reason."""
    key, *rest = path
    if isinstance(node, list):
        found = [item for item in node if item["name"] == key]
        if not found or not rest:
            names = ", ".join(dict.fromkeys(item["name"] for item in node))
            raise KeyError(f"no key of one of: {names}")
        for item in found:
            _set(item, rest, value)
    elif not isinstance(node, dict):
        raise KeyError("it has no keys")
    elif rest:
        if node.get(key) is None:
            node[key] = {}
        _set(node[key], rest, value)
    else:
        known = node.get(key)
        node[key] = _picked(known, value) if _of_named(known) else value


def _of_named(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and "name" in item for item in value)


def _picked(items: list[dict], names: Any) -> list[dict]:
    """A list of names stands for the items of these names."""
    names = names if isinstance(names, list) else [names]
    unknown = [name for name in names if name not in [item["name"] for item in items]]
    if unknown or not names:
        raise KeyError(f"{unknown or 'nothing'}: a list of names of what is there, as [click]")
    return [item for item in items if item["name"] in names]


def _alike(part: str, spec: Spec, base: Spec) -> bool:
    """Whether what instances and Transform read of a part is the same; tasks may be fewer, and
    knowledge left out."""
    free = _FREE.get(part, set())
    one, other = (_read(getattr(s, part), free) for s in (spec, base))
    if part == "knowledge" and one is None:
        return True
    return all(task in other for task in one) if part == "tasks" else one == other


def _read(value: Any, free: set[str]) -> Any:
    if isinstance(value, tuple):
        return [_read(item, free) for item in value]
    return value.model_dump(exclude=free) if hasattr(value, "model_dump") else value
