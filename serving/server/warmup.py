"""Runs a version before anybody waits for it: the first runs of a graph are its slowest."""

from __future__ import annotations

import functools
import logging
import os
import pathlib
from collections.abc import Iterator
from concurrent import futures
from typing import TYPE_CHECKING

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos, tensors, tfrecord
from serving.server import batching, classify, contract, multi_inference, predict, regress

if TYPE_CHECKING:
    from serving.server.servable import Servable

FILE = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
_METHODS = {
    "predict_log": predict.run,
    "classify_log": classify.run,
    "regress_log": regress.run,
    "multi_inference_log": multi_inference.run,
}


def warm_up(servable: Servable, path: str) -> None:
    """Runs the requests the model brings along, or else made-up ones.

    The file is a TFRecord of `PredictionLog`s, as for TF Serving (saved_model_warmup_util.cc).

    Args:
      path: the SavedModel's directory.

    Raises:
      errors.ServingError: the file is unreadable or too long, or one of its requests fails.
    """
    file = pathlib.Path(path, FILE)
    if file.exists():
        count = 0
        for log in _logs(file):
            _replay(servable, log, file)
            count += 1
        logging.info("warmed up with %d requests of %s", count, file)
    else:
        # Each graph is prepared by one thread; the cores share the signatures.
        names = [name for name in servable.signatures if not name.startswith("__")]  # TensorFlow's
        with futures.ThreadPoolExecutor(os.cpu_count(), "warm-up") as threads:
            list(threads.map(functools.partial(_run_made_up, servable), names))


def _logs(file: pathlib.Path) -> Iterator[message.Message]:
    try:
        with file.open("rb") as content:
            for number, record in enumerate(tfrecord.read(content), 1):
                if number > MAX_RECORDS:
                    raise errors.invalid(
                        f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}"
                    )
                yield protos.PredictionLog.FromString(record)
    except (OSError, tfrecord.TFRecordError, message.DecodeError) as error:
        raise errors.ServingError(
            grpc.StatusCode.DATA_LOSS,
            f"{file}: {error}. Please verify your warmup data is in TFRecord format.",
        ) from None


def _replay(servable: Servable, log: message.Message, file: pathlib.Path) -> None:
    kind = log.WhichOneof("log_type")
    if kind not in _METHODS:
        raise errors.ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"{file}: Unsupported log_type for warmup: {kind}"
        )
    try:
        _METHODS[kind](servable, getattr(log, kind).request)
    except errors.ServingError as error:
        raise errors.ServingError(error.code, f"{file}: {error.message}") from None


def _run_made_up(servable: Servable, name: str) -> None:
    """Once with one row and, where requests are merged, once with a full batch of them."""
    signature = servable.signatures[name]
    parameters = servable.options.batching or batching.Parameters()
    try:
        for rows in (1, parameters.max_batch_size) if name in servable.mergings else (1,):
            inputs = {alias: _made_up(info, rows) for alias, info in signature.inputs.items()}
            servable.run_signature(name, inputs, tuple(signature.outputs))
    except errors.ServingError as error:
        logging.info("warm-up: %s doesn't take a made-up request: %s", name, error)
        return
    logging.info("warmed up %s with made-up requests", name)


def _made_up(info: message.Message, rows: int) -> np.ndarray:
    """Zeros or empty strings (an empty string is a valid tf.Example too).

    Raises:
      errors.ServingError: UNIMPLEMENTED, the project has no arrays of this dtype.
    """
    shape = [dim.size if dim.size >= 0 else 1 for dim in info.tensor_shape.dim]
    if contract.has_rows(info):
        shape[0] = rows
    if info.dtype == tensors.STRING:
        return np.full(shape, b"", object)
    if info.dtype not in tensors.DTYPES:
        raise errors.ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"an input has {tensors.dtype_name(info.dtype)}"
        )
    return np.zeros(shape, tensors.DTYPES[info.dtype])
