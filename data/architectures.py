"""The words for models, and the sets of them that the spec's rules tell apart.

What each word puts together is in `modules/models/architectures.py`.
"""

from __future__ import annotations

from typing import Literal

Architecture = Literal[
    "supermoe",
    "bert",
    "aetn",
    "nextitnet",
    "mtssl",
    "shared_bottom",
    "mmoe",
    "ple",
    "deepfm",
    "nfm",
    "dcn",
    "din",
    "can",
    "two_tower",
    "conet",
    "darec",
    "keep_c",
]
Heads = Literal["towers", "shared_bottom", "mmoe", "ple", "deepfm", "nfm", "dcn"]

LAYERED = frozenset({"supermoe", "bert", "aetn", "nextitnet"})
"""Architectures whose encoder takes adapters, added tasks and a `pooling`, and can be tuned by its
last layers only."""
TWO_DOMAINS = frozenset({"conet", "darec", "keep_c"})
"""Architectures with a network for each of `domain`'s two."""
OWN_HEADS = frozenset({"din", "can", "two_tower"}) | TWO_DOMAINS
"""Architectures that are their heads."""
FACTORIZED = frozenset({"deepfm", "nfm", "dcn"})
"""Heads over one vector a channel."""
_HEADS_OF_MEANS = frozenset({"shared_bottom", "mmoe", "ple"}) | FACTORIZED
"""Heads that are an architecture, too: over the mean of projected events."""
NOT_PRETRAINED = _HEADS_OF_MEANS | OWN_HEADS
"""Architectures that only fine-tune."""
WITHOUT_HIDDEN = _HEADS_OF_MEANS | TWO_DOMAINS
"""Heads that show no layer before the logits to extract knowledge from."""
CONTEXT_IN_H = frozenset({"two_tower", "keep_c"})
"""Architectures in which context reaches some answers through H alone."""
OWN_PRETRAINING = frozenset({"aetn", "mtssl"})
"""Architectures with a pre-training of their own, no `training.pretrain.objective`."""
