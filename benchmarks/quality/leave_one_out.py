"""The next film of every user, ranked among all: BERT4Rec and a SASRec of ours on MovieLens-1M.

    python -m benchmarks.quality.leave_one_out --data=FOLDER [--model=bert4rec] [--epochs=200]

FOLDER holds MovieLens-1M's `ratings.dat`, `movies.dat` and `users.dat`
(https://grouplens.org/datasets/movielens/1m; its licence forbids passing it on). Leave-one-out:
each user's last film is tested on, the one before it is left for tuning and not trained on; all
films compete but those the user has rated before, as in Petrov & Macdonald's replicability study
(RecSys 2022), which found HR@10 0.282 and NDCG@10 0.152 for BERT4Rec, 0.250 and 0.134 for SASRec.

- bert4rec: `bert` under `targets: expanded` (bidirectional) and masked channel prediction; a film
  is predicted by a [MASK] behind the history.
- sasrec: `bert` under `targets: causal` and next-event prediction, with a softmax over all films
  where SASRec has one negative.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import functools  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402
from absl import app, flags  # noqa: E402

from data.columns import SourceError  # noqa: E402
from data.sources import movielens  # noqa: E402
from data.spec import Spec, parse_spec  # noqa: E402
from modules.embeddings.table import MASK, NUM_RESERVED, PAD  # noqa: E402
from modules.features import Batch  # noqa: E402
from modules.layers.pooling import last  # noqa: E402
from modules.metrics.ranking import hit_rate, ndcg, ranks  # noqa: E402
from modules.models.pretrainer import Pretrainer  # noqa: E402
from modules.training.step import Step  # noqa: E402

_DATA = flags.DEFINE_string("data", None, "MovieLens-1M's folder.")
_MODEL = flags.DEFINE_enum("model", "bert4rec", ["bert4rec", "sasrec"], "Which model.")
_EPOCHS = flags.DEFINE_integer("epochs", 200, "Passes over all users.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of initialisation, masks and order.")
_EVERY = flags.DEFINE_integer("evaluate_every", 10, "Epochs between two evaluations.", 1)

MAX_LENGTH = 200
_BATCH = 128
_K = 10
_BATCH_SPEC = {
    "sequence_movie_id": tf.TensorSpec([None, None], tf.int64),
    "sequence_mask": tf.TensorSpec([None, None], tf.bool),
}
_PHASES: dict[str, dict[str, Any]] = {
    "bert4rec": {"sequence": {"targets": "expanded"}, "objective": "masked_channels"},
    "sasrec": {"sequence": {"targets": "causal"}, "objective": "next_event"},
}


class Histories(NamedTuple):
    """rows: the films' table rows, all users' one after the other, each oldest first; splits: int
    [users - 1], where every user but the first begins; num_films: rows that are films."""

    rows: np.ndarray
    splits: np.ndarray
    num_films: int

    def by_user(self) -> list[np.ndarray]:
        return np.split(self.rows, self.splits)


def main(argv: list[str]) -> None:
    del argv
    if not _DATA.value:
        sys.exit("--data=FOLDER: give MovieLens-1M's folder")
    spec = spec_of(_MODEL.value, _EPOCHS.value, _SEED.value)
    try:
        histories = read(spec, _DATA.value)
    except SourceError as error:
        sys.exit(str(error))
    num_users = len(histories.by_user())
    print(f"{num_users} users, {histories.num_films} films, {len(histories.rows)} ratings")
    keras.utils.set_random_seed(_SEED.value)
    pretrainer = Pretrainer(spec, {"movie_id": NUM_RESERVED + histories.num_films})
    scores_of = scorer(pretrainer)
    bidirectional = spec.sequence.targets == "expanded"
    for epoch, loss in train(pretrainer, histories):
        line = f"epoch {epoch}/{_EPOCHS.value}: loss {loss:.4f}"
        if epoch % _EVERY.value == 0 or epoch == _EPOCHS.value:
            places = evaluate(scores_of, histories, bidirectional)
            line += f", HR@{_K} {hit_rate(places, _K):.4f}, NDCG@{_K} {ndcg(places, _K):.4f}"
        print(line, flush=True)


def read(spec: Spec, folder: str) -> Histories:
    """Every user's films in the order of time; those of one second in the file's order.

    Raises:
      SourceError: a file is missing or can't be read.
    """
    (events,) = [file for file in movielens.find(spec, folder) if file.role == "events"]
    table = pa.concat_tables([chunk.table for chunk in movielens.read(events, spec)])
    film = pc.dictionary_encode(table["movie_id"]).combine_chunks()
    user = pc.dictionary_encode(table["user_id"]).combine_chunks().indices.to_numpy()
    order = np.lexsort([table["time_ms"].to_numpy(), user])
    rows = NUM_RESERVED + film.indices.to_numpy()[order].astype(np.int64)
    return Histories(rows, np.cumsum(np.bincount(user))[:-1], len(film.dictionary))


def train(pretrainer: Pretrainer, histories: Histories) -> Iterator[tuple[int, float]]:
    """Yields (epoch, mean loss) after each pass over all users."""
    spec = pretrainer.spec
    windows = list(_training_windows(histories))
    steps = -(-len(windows) // _BATCH)
    pretrainer.loss(_batch(windows[:2]), tf.constant(0, tf.int64), training=False)
    phase = spec.training.pretrain
    step = Step(pretrainer, pretrainer.loss, phase, steps * phase.epochs)
    run = tf.function(
        lambda batch, number: step(batch, number)[0]["loss"],
        input_signature=[_BATCH_SPEC, tf.TensorSpec([], tf.int64)],
    )
    rng = np.random.default_rng(spec.training.seed)
    number = 0
    for epoch in range(1, phase.epochs + 1):
        order, losses, shown = rng.permutation(len(windows)), [], time.monotonic()
        for start in range(0, len(windows), _BATCH):
            chosen = [windows[i] for i in order[start : start + _BATCH]]
            losses.append(run(_batch(chosen), tf.constant(number, tf.int64)))
            number += 1
            if time.monotonic() > shown + 30:
                shown = time.monotonic()
                print(f"  step {start // _BATCH + 1}/{steps}", flush=True)
        yield epoch, float(np.mean(losses))


def scorer(pretrainer: Pretrainer) -> Callable[[Batch], tf.Tensor]:
    """A function of histories -> the score of every film as the next event, [B, rows]."""
    head = pretrainer.objective.heads["sequence_movie_id"]

    @functools.partial(tf.function, input_signature=[_BATCH_SPEC])
    def scores(batch: Batch) -> tf.Tensor:
        encoded = pretrainer.encoder(batch, training=False)
        return head.scores(last(encoded.hidden, encoded.mask))

    return scores


def evaluate(
    scores_of: Callable[[Batch], tf.Tensor], histories: Histories, bidirectional: bool
) -> np.ndarray:
    """The rank of every user's last film among the films not rated before: float [users].

    Args:
      bidirectional: the next film is asked for by a [MASK] behind the history.
    """
    users = histories.by_user()
    found = []
    for start in range(0, len(users), _BATCH):
        chosen = users[start : start + _BATCH]
        shown = [
            np.append(u[-MAX_LENGTH:-1], MASK) if bidirectional else u[-MAX_LENGTH - 1 : -1]
            for u in chosen
        ]
        scores = scores_of(_batch(shown)).numpy()
        seen = np.zeros(scores.shape, bool)
        for row, user in enumerate(chosen):
            seen[row, user[:-1]] = True
        target = np.array([user[-1] for user in chosen])
        found.append(ranks(scores[:, NUM_RESERVED:], target - NUM_RESERVED, seen[:, NUM_RESERVED:]))
    return np.concatenate(found)


def _training_windows(histories: Histories) -> Iterator[np.ndarray]:
    """Every user without the last two films, cut into windows from the newest on."""
    for user in histories.by_user():
        own = user[:-2]
        for stop in range(len(own), 1, -MAX_LENGTH):
            yield own[max(stop - MAX_LENGTH, 0) : stop]


def _batch(windows: list[np.ndarray]) -> Any:
    lengths = np.array([len(window) for window in windows])
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    rows = np.full(mask.shape, PAD, np.int64)
    rows[mask] = np.concatenate(windows)
    return {"sequence_movie_id": tf.constant(rows), "sequence_mask": tf.constant(mask)}


def spec_of(model: str, epochs: int, seed: int) -> Spec:
    """The model as a spec, `training.pretrain` its whole training."""
    phase = _PHASES[model]
    return parse_spec(
        {
            "name": model,
            "source": {"format": "movielens"},
            "sequence": {"max_length": MAX_LENGTH, "window": MAX_LENGTH + 1} | phase["sequence"],
            "channels": [
                {"name": "movie_id", "scope": "sequence", "kind": "id", "rows": 1, "top_k": 4096}
                | {"dim": 64, "mask_prediction": True}
            ],
            # A spec has a task; this one is never trained.
            "tasks": [{"name": "gender", "per": "user", "label": "gender", "positive": ["F"]}],
            "model": {"architecture": "bert", "hidden_dim": 64, "num_blocks": 2, "num_heads": 2}
            | {"ffn_dim": 256, "dropout": 0.2},
            "training": {
                "seed": seed,
                "pretrain": {
                    "objective": phase["objective"],
                    "epochs": epochs,
                    "batch_size": _BATCH,
                    "mask_rate": 0.2,
                    "whole_event_share": 0.0,
                },
            },
        }
    )


if __name__ == "__main__":
    app.run(main)
