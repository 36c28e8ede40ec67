"""AETN, SuperMoE's baseline: a transformer whose H is an autoencoder's bottleneck.

Zhang et al., 2020: General-Purpose User Embeddings based on Mobile App Usage.
"""

from __future__ import annotations

from data.spec import Spec
from modules.layers.pooling import MEAN
from modules.models.bert import Bert
from modules.models.tables import Tables


def aetn(spec: Spec, tables: Tables) -> Bert:
    """A dense transformer and the mean of its output unless `model.pooling` says otherwise,
    pre-trained by `DenoisingAutoencoder`.

    Simplified: the paper has three inputs, the apps a user keeps (a bag with an autoencoder of
    its own), installs and uninstalls (sequences with an encoder each), and decodes the sequences
    by a transformer. Here all channels are one sequence of events under one encoder, and each MCP
    channel is decoded as the bag of what the window held.
    """
    return Bert(spec, tables, pooling=MEAN)
