"""What `training.finetune.weighting` may name: adding a method is its file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from data.spec import Spec
from modules.objectives.weighting.bilevel import Bilevel
from modules.objectives.weighting.gradnorm import GradNorm
from modules.objectives.weighting.method import Weighting
from modules.objectives.weighting.pcgrad import pcgrad
from modules.objectives.weighting.static import static
from modules.objectives.weighting.uncertainty import Uncertainty

WEIGHTINGS: dict[str, Callable[[Spec], Weighting]] = {
    "static": static,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "pcgrad": pcgrad,
    "bilevel": Bilevel,
}
