"""The leave-one-out command on a made-up MovieLens-1M: each film is followed by the same other."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tf_keras as keras

from benchmarks.quality import leave_one_out
from modules.embeddings.table import NUM_RESERVED
from modules.metrics.ranking import hit_rate
from modules.models.pretrainer import Pretrainer

FILMS, USERS, WATCHED = 60, 150, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("ml-1m")
    rng = np.random.default_rng(0)
    order = rng.permutation(FILMS)
    watched = [(rng.integers(FILMS) + np.arange(WATCHED)) % FILMS for _ in range(USERS)]
    ratings = [
        f"{user}::{order[film] + 1}::4::{978_300_000 + 60 * i}"
        for user, films in enumerate(watched, 1)
        for i, film in enumerate(films)
    ]
    rng.shuffle(ratings)
    movies = [f"{film}::Film {film} (1999)::Drama" for film in range(1, FILMS + 1)]
    users = [f"{user}::F::25::4::12345" for user in range(1, USERS + 1)]
    for name, lines in {"ratings": ratings, "movies": movies, "users": users}.items():
        (folder / f"{name}.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


def test_histories_are_in_the_order_of_time(folder):
    histories = leave_one_out.read(leave_one_out.spec_of("sasrec", 1, 0), str(folder))
    assert histories.num_films == FILMS
    users = histories.by_user()
    assert [len(films) for films in users] == [WATCHED] * USERS
    follower = {a: b for films in users for a, b in zip(films[:-1], films[1:], strict=True)}
    assert all(
        follower[a] == b for films in users for a, b in zip(films[:-1], films[1:], strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "epochs", "least"),
    [pytest.param("sasrec", 25, 0.9, marks=pytest.mark.exhaustive), ("bert4rec", 60, 0.6)],
)
def test_the_next_film_is_found_where_one_follows_the_other(folder, model, epochs, least):
    """By chance one of 49 films not seen before: HR@10 0.2."""
    keras.utils.set_random_seed(0)
    spec = leave_one_out.spec_of(model, epochs, 0)
    histories = leave_one_out.read(spec, str(folder))
    pretrainer = Pretrainer(spec, {"movie_id": NUM_RESERVED + FILMS})
    for _ in leave_one_out.train(pretrainer, histories):
        pass
    ranks = leave_one_out.evaluate(
        leave_one_out.scorer(pretrainer), histories, bidirectional=model == "bert4rec"
    )
    assert hit_rate(ranks, 10) > least
