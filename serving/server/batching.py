"""How requests are batched: TF Serving's BatchingParameters."""

from __future__ import annotations

import dataclasses
import os

from google.protobuf import message

from serving import errors


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What of TF Serving's BatchingParameters has a meaning here (session_bundle_config.proto).

    Its `thread_pool_name` and the splitting of large requests have none: batches run in the
    requests' own threads, and a large request runs as it is.

    Attributes:
      max_batch_size: rows of a batch. A larger request runs alone (TF Serving refuses it).
      batch_timeout_micros: how long a batch waits for company; 0 takes what is queued already.
      max_enqueued_batches: batches' worth of rows that may wait; more is RESOURCE_EXHAUSTED.
      num_batch_threads: batches of one version that run at the same time. Half the cores: the
        fewer, the larger the batches, which cost less a row and use the other cores by themselves.
      allowed_batch_sizes: increasing, the last is `max_batch_size`; a batch is filled up to the
        next of them by repeating a row. Empty: any size.
      pad_variable_length_inputs: pads inputs of unequal shapes with zeros or empty strings, also
        where the model doesn't say that it can tell padding apart.
    """

    max_batch_size: int = 64
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 100
    num_batch_threads: int = max((os.cpu_count() or 1) // 2, 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise errors.invalid(f"batching: {name} must be at least 1")
        if self.batch_timeout_micros < 0:
            raise errors.invalid("batching: batch_timeout_micros must not be negative")
        sizes = self.allowed_batch_sizes
        if sizes and (sorted(set(sizes)) != list(sizes) or sizes[0] < 1):
            raise errors.invalid(
                f"batching: allowed_batch_sizes {list(sizes)} must be positive and increase"
            )
        if sizes and sizes[-1] != self.max_batch_size:
            raise errors.invalid(
                f"batching: the last of allowed_batch_sizes {list(sizes)} must be max_batch_size"
                f" ({self.max_batch_size})"
            )

    @classmethod
    def from_proto(cls, proto: message.Message) -> Parameters:
        """Reads a BatchingParameters message; what it leaves out has the default here.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, a value that makes no sense.
        """
        scalars = {
            name: getattr(proto, name).value
            for name in (
                "max_batch_size",
                "batch_timeout_micros",
                "max_enqueued_batches",
                "num_batch_threads",
            )
            if proto.HasField(name)
        }
        return cls(
            **scalars,
            allowed_batch_sizes=tuple(proto.allowed_batch_sizes),
            pad_variable_length_inputs=proto.pad_variable_length_inputs,
        )
