"""MovieLens-1M (Harper & Konstan, 2015) in its published `::` format, Latin-1.

The folder holds `ratings.dat` and `users.dat`; `movies.dat` is joined to each rating on
`movie_id`. Columns: `user_id`, `movie_id`, `rating`, `timestamp`; `title`, `genres`
(multi-valued); `gender`, `age`, `occupation`, `zip_code`. Derived: `time_ms` (`timestamp` is
in seconds), `like` ("1" for a rating of 4 or 5, else "0") and `year` (the title's).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data.casting import integers, single_array
from data.columns import Chunk, File, SourceError, event_columns, require_columns, user_columns
from data.dead_letters import DeadLetter
from data.sources import delimited
from data.sources.joining import left_join
from data.spec import Spec

RATINGS = ("user_id", "movie_id", "rating", "timestamp")
USERS = ("user_id", "gender", "age", "occupation", "zip_code")
MOVIES = ("movie_id", "title", "genres")
DERIVED = ("time_ms", "like", "year")


def find(spec: Spec, data_root: str) -> tuple[File, ...]:
    """The folder's files. Raises `SourceError` for a missing one, or an unknown column."""
    folder = os.path.join(data_root, spec.source.path)
    ratings, users, movies = (
        os.path.join(folder, name) for name in ("ratings.dat", "users.dat", "movies.dat")
    )
    for path in (ratings, users, movies):
        if not os.path.exists(path):
            raise SourceError(f"{path}: no such file: is {folder} MovieLens-1M's folder?")
    require_columns(ratings, [*RATINGS, *MOVIES, *DERIVED], event_columns(spec))
    require_columns(users, list(USERS), user_columns(spec))
    return File(users, "users", 0), File(ratings, "events", 1, (movies,))


def read(file: File, spec: Spec) -> Iterator[Chunk]:
    """The rows of one file; ratings joined with their movies."""
    if file.role == "users":
        yield from _read_fields(file.path, USERS)
        return
    for chunk in _read_fields(file.path, RATINGS):
        table, problems = _derive(chunk.table)
        table = left_join(table, _movies(file.joined[0]), "movie_id")
        yield dataclasses.replace(chunk, table=table, problems=tuple(problems))


def _derive(table: pa.Table) -> tuple[pa.Table, list[tuple[np.ndarray, str]]]:
    seconds, no_time = integers(single_array(table["timestamp"]))
    rating, no_rating = integers(single_array(table["rating"]))
    stars = rating.fill_null(1).to_numpy()
    like = pc.greater_equal(rating, 4).cast(pa.int8()).cast(pa.string())
    table = table.append_column("time_ms", pc.multiply(seconds, 1000)).append_column("like", like)
    return table, [
        (no_time, "timestamp: not integer seconds"),
        (no_rating | (stars < 1) | (stars > 5), "rating: not 1 to 5"),
    ]


@functools.lru_cache(maxsize=1)
def _movies(path: str) -> pa.Table:
    """Kept, as every chunk of a worker is joined with it."""
    movies = pa.concat_tables([chunk.table for chunk in _read_fields(path, MOVIES)])
    year = pc.extract_regex(movies["title"], r"\((?P<year>\d{4})\)\s*$")
    return movies.append_column("year", pc.struct_field(year, [0]))


def _read_fields(path: str, names: tuple[str, ...]) -> Iterator[Chunk]:
    """Rows of a `::`-separated file as text. Arrow separates by one byte only, so it reads
    whole lines, which are then split."""
    first = 1
    with delimited.open_stream(path) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=delimited.BLOCK_BYTES,
                column_names=["line"],
                encoding="latin-1",
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\x01", quote_char=False, ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"line": pa.string()}),
        )
        for batch in reader:
            lines = batch.column(0)
            rows = np.arange(first, first + len(lines))
            first += len(lines)
            yield _split(path, names, lines, rows)


def _split(path: str, names: tuple[str, ...], lines: pa.Array, rows: np.ndarray) -> Chunk:
    fields = pc.split_pattern(lines, "::")
    counts = pc.list_value_length(fields).fill_null(0).to_numpy()
    wrong = counts != len(names)
    blank = pc.equal(lines, "").to_numpy(zero_copy_only=False)
    letters = [
        DeadLetter(path, int(rows[i]), f"{counts[i]} fields instead of {len(names)}", str(lines[i]))
        for i in np.flatnonzero(wrong & ~blank)
    ]
    values = fields.filter(pa.array(~wrong)).flatten()
    columns = [
        values.take(pa.array(np.arange(i, len(values), len(names)))) for i in range(len(names))
    ]
    return Chunk(
        pa.table(columns, list(names)), rows[~wrong], text=True, dead_letters=tuple(letters)
    )
