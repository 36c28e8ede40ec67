"""What a user writes in YAML: unknown keys are refused, and all that is wrong is listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


class Strict(pydantic.BaseModel):
    """No unknown keys, no NaN, and no change once it is made."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def listed(error: pydantic.ValidationError) -> str:
    """Every mistake in a line of its own, indented: the key's path, what is wrong with it, and,
    where a key of another kind was expected, the value that was given instead."""
    lines = []
    for mistake in error.errors():
        key = ".".join(str(part) for part in mistake["loc"])
        reasons = _reason(mistake).split("\n")
        lines += [f"  {key}: {reason}" if key else f"  {reason}" for reason in reasons]
    return "\n".join(lines)


def _reason(mistake: Mapping[str, Any]) -> str:
    if mistake["type"] == "extra_forbidden":
        return "unknown key"
    reason = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] not in ("value_error", "missing"):
        reason += f" (got {mistake['input']!r:.60})"
    return reason
