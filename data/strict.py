"""What a user writes in YAML: unknown keys are refused, and all that is wrong is listed."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import pydantic

Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


class Strict(pydantic.BaseModel):
    """No unknown keys, no NaN, and no change once it is made."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Model = TypeVar("_Model", bound=Strict)


class InvalidError(ValueError):
    """Lists every mistake in a line of its own, indented: the key's path, what is wrong with it,
    and, where a key of another kind was expected, the value that was given instead."""


def validated(model: type[_Model], raw: object) -> _Model:
    """`raw`, as YAML or JSON gave it, as a model. Raises `InvalidError`."""
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = []
        for mistake in error.errors():
            key = ".".join(_path(mistake["loc"], raw))
            reasons = _reason(mistake, model).split("\n")
            lines += [f"  {key}: {reason}" if key else f"  {reason}" for reason in reasons]
        raise InvalidError("\n".join(lines)) from None


def _path(place: Iterable[int | str], raw: Any) -> list[str]:
    """A list's items by their place and, where they have one, by their name: `2(price)`."""
    path = []
    for part in place:
        try:
            raw = raw[part]
        except (LookupError, TypeError):  # the tag of a union, or a key that is missing
            path.append(str(part))
            continue
        name = raw.get("name") if isinstance(raw, Mapping) else None
        named = isinstance(part, int) and isinstance(name, str)
        path.append(f"{part}({name})" if named else str(part))
    return path


def _reason(mistake: Mapping[str, Any], model: type[Strict]) -> str:
    if mistake["type"] == "extra_forbidden":
        *section, key = mistake["loc"]
        close = difflib.get_close_matches(str(key), _keys(model, section), n=1)
        return "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
    reason = mistake["msg"].removeprefix("Value error, ")
    # A union's tag is in the message; what was given is all of the item.
    if mistake["type"] not in ("value_error", "missing", "union_tag_invalid"):
        reason += f" (got {mistake['input']!r:.60})"
    return reason


def _keys(model: type[Strict], place: Iterable[int | str]) -> list[str]:
    """Those that the section at `place` of a model may have."""
    sections = [model]
    for part in place:
        if isinstance(part, int):
            continue
        fields = [s.model_fields[part] for s in sections if part in s.model_fields]
        if fields:
            sections = [inner for field in fields for inner in _sections(field.annotation)]
        else:
            sections = [section for section in sections if _has_tag(section, part)]
    return [key for section in sections for key in section.model_fields]


def _sections(annotation: Any) -> list[type[Strict]]:
    if inner := typing.get_args(annotation):
        return [section for one in inner for section in _sections(one)]
    is_section = isinstance(annotation, type) and issubclass(annotation, Strict)
    return [annotation] if is_section else []


def _has_tag(section: type[Strict], tag: str) -> bool:
    """Whether a union tells this section from its others by `tag`."""
    return any(tag in typing.get_args(f.annotation) for f in section.model_fields.values())
