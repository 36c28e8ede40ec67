"""What `model.architecture` may name: adding a model is its file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from data.spec import Spec
from modules.models.aetn import aetn
from modules.models.bert import Bert
from modules.models.can import can_towers
from modules.models.conet import conet
from modules.models.darec import darec
from modules.models.dcn import dcn
from modules.models.deepfm import deepfm
from modules.models.din import din_towers
from modules.models.encoder import Encoder
from modules.models.event_mean import EventMean
from modules.models.keep_c import KeepC
from modules.models.mmoe import mmoe
from modules.models.nextitnet import NextItNet
from modules.models.nfm import nfm
from modules.models.ple import ple
from modules.models.shared_bottom import shared_bottom
from modules.models.supermoe import SuperMoE
from modules.models.tables import Tables
from modules.models.towers import Towers
from modules.models.two_tower import TwoTower
from modules.objectives.contrastive import ContrastiveViews
from modules.objectives.denoising_autoencoder import DenoisingAutoencoder
from modules.objectives.masked_channel_prediction import MaskedChannelPrediction
from modules.objectives.next_event import NextEventPrediction
from modules.objectives.s3_rec import S3Rec


class Architecture(NamedTuple):
    """encoder: events -> h_o (`encoder.py`); heads: H and a target -> logits of every task
    (`user_model.py`), and where they say `reads_events`, also from `Events`; pretraining: what
    trains the encoder before there are labels (`pretrainer.py`), None for models that
    have nothing of the kind."""

    encoder: Callable[[Spec, Tables], Encoder]
    heads: Callable[[Spec, Tables], Any]
    pretraining: Callable[[Spec, Tables], Any] | None


HEADS: dict[str, Callable[[Spec, Tables], Any]] = {
    "towers": Towers,
    "shared_bottom": shared_bottom,
    "mmoe": mmoe,
    "ple": ple,
    "deepfm": deepfm,
    "nfm": nfm,
    "dcn": dcn,
}
"""What `model.heads` may put in place of an architecture's own."""


def channel_prediction(spec: Spec, tables: Tables) -> Any:
    """What `training.pretrain.objective` names."""
    objectives: dict[str, Callable[..., Any]] = {
        "masked_channels": MaskedChannelPrediction,
        "denoising_autoencoder": DenoisingAutoencoder,
        "next_event": NextEventPrediction,
        "s3": S3Rec,
    }
    return objectives[spec.training.pretrain.objective](spec, tables)


ARCHITECTURES = {
    "supermoe": Architecture(SuperMoE, Towers, channel_prediction),
    "bert": Architecture(Bert, Towers, channel_prediction),
    "aetn": Architecture(aetn, Towers, DenoisingAutoencoder),
    "nextitnet": Architecture(NextItNet, Towers, channel_prediction),
    "mtssl": Architecture(EventMean, Towers, ContrastiveViews),
    "shared_bottom": Architecture(EventMean, shared_bottom, None),
    "mmoe": Architecture(EventMean, mmoe, None),
    "ple": Architecture(EventMean, ple, None),
    "deepfm": Architecture(EventMean, deepfm, None),
    "nfm": Architecture(EventMean, nfm, None),
    "dcn": Architecture(EventMean, dcn, None),
    "din": Architecture(EventMean, din_towers, None),
    "two_tower": Architecture(EventMean, TwoTower, None),
    "can": Architecture(EventMean, can_towers, None),
    "conet": Architecture(EventMean, conet, None),
    "darec": Architecture(EventMean, darec, None),
    "keep_c": Architecture(EventMean, KeepC, None),
}
