"""The pre-trained encoder on its way from one Trainer to the next."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from modules.embeddings.table import EmbeddingTable
from modules.models.supermoe import Encoder

_CHECKPOINT = "encoder/checkpoint"


def save_encoder(folder: str, encoder: Encoder, tables: dict[str, EmbeddingTable]) -> None:
    """Writes the encoder and the tables below a model artifact's folder."""
    path = pathlib.Path(folder) / _CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    _checkpoint(encoder, tables).write(str(path))


def load_encoder(folder: str, encoder: Encoder, tables: dict[str, EmbeddingTable]) -> None:
    """Restores both; every variable of theirs must be built and must be in the checkpoint.

    Raises:
      FileNotFoundError: no pre-trained encoder in `folder`.
      AssertionError: the checkpoint is of another architecture.
    """
    path = pathlib.Path(folder) / _CHECKPOINT
    if not path.with_name(path.name + ".index").exists():
        raise FileNotFoundError(f"{folder}: no pre-trained encoder ({_CHECKPOINT}) to start from")
    status = _checkpoint(encoder, tables).read(str(path))
    status.assert_existing_objects_matched()


def _checkpoint(encoder: Encoder, tables: dict[str, EmbeddingTable]) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(encoder=encoder, tables=tables)
