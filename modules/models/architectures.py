"""What `model.architecture` may name: adding a model is its file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from data.spec import Spec
from modules.models.bert import Bert
from modules.models.encoder import Encoder
from modules.models.supermoe import SuperMoE
from modules.models.tables import Tables
from modules.models.towers import Towers
from modules.objectives.masked_channel_prediction import MaskedChannelPrediction


class Architecture(NamedTuple):
    """encoder: events -> h_o (`encoder.py`); heads: H and a target -> logits of every task
    (`user_model.py`); pretraining: what trains the encoder before there are labels
    (`pretrainer.py`), None for models that have nothing of the kind."""

    encoder: Callable[[Spec, Tables], Encoder]
    heads: Callable[[Spec, Tables], Any]
    pretraining: Callable[[Spec, Tables], Any] | None


ARCHITECTURES = {
    "supermoe": Architecture(SuperMoE, Towers, MaskedChannelPrediction),
    "bert": Architecture(Bert, Towers, MaskedChannelPrediction),
}
