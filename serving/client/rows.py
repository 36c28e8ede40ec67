"""Splitting a large request along its rows, and joining the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
import numpy as np

from serving import errors


def split(inputs: Mapping[str, np.ndarray], most: int | None) -> list[dict[str, np.ndarray]]:
    """Pieces of at most `most` rows; one piece if it is None, or if inputs share no rows.

    Args:
      inputs: name -> array [B, …].
    """
    sizes = {array.shape[0] if array.ndim else None for array in inputs.values()}
    rows = sizes.pop() if len(sizes) == 1 else None
    if most is None or rows is None or rows <= most:
        return [dict(inputs)]
    return [
        {name: array[start : start + most] for name, array in inputs.items()}
        for start in range(0, rows, most)
    ]


def join(pieces: Sequence[Mapping[str, np.ndarray]], rows: Sequence[int]) -> dict[str, np.ndarray]:
    """One answer of several, row after row.

    Further axes, such as K of `click` [B, K], are padded to the widest piece's: with 0, False or
    b'', as the model pads within a piece.

    Args:
      pieces: the answers, name -> array [rows, …].
      rows: each piece's.

    Raises:
      errors.ServingError: FAILED_PRECONDITION, an output without a row per input.
    """
    return {name: _join(name, [piece[name] for piece in pieces], rows) for name in pieces[0]}


def _join(name: str, arrays: Sequence[np.ndarray], rows: Sequence[int]) -> np.ndarray:
    for array, count in zip(arrays, rows, strict=True):
        if not array.ndim or len(array) != count:
            raise errors.ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"output {name!r} has shape {list(array.shape)} for {count} rows: a signature"
                " whose outputs aren't by row can't be split; ask without max_batch_rows",
            )
    widest = tuple(np.max([array.shape[1:] for array in arrays], axis=0).astype(int).tolist())
    dtype = arrays[0].dtype
    joined = np.full((sum(rows), *widest), b"" if dtype.kind == "O" else dtype.type(0), dtype)
    start = 0
    for array in arrays:
        part = joined[start : start + len(array)]
        part[tuple(map(slice, array.shape))] = array
        start += len(array)
    return joined
