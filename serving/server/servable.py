"""A loaded version as the API methods see it: its signatures, and running them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf import message

from serving.server import batching, saved_model


@dataclasses.dataclass(frozen=True)
class Options:
    """How versions are loaded and run, the same for all of them.

    Attributes:
      session_config: a serialized `tensorflow.ConfigProto` for every session.
      batching: how requests are merged; None runs each by itself.
      warmup: run each version before it answers, so that no user meets the slow first runs.
      signature_method_name_check: a signature serves only the method it was exported for.
      user_cache_size: user embeddings kept, for models that offer it (contract.py); 0 keeps none.
      user_cache_seconds: how long one is kept.
    """

    session_config: bytes = b""
    batching: batching.Parameters | None = batching.Parameters()
    warmup: bool = True
    signature_method_name_check: bool = False
    user_cache_size: int = 100_000
    user_cache_seconds: float = 60.0


class Servable:
    """One version in memory. Thread-safe.

    Attributes:
      options: what it was loaded with.
      signatures: signature name -> SignatureDef.
    """

    def __init__(self, path: str, options: Options):
        """
        Args:
          path: the directory that holds `saved_model.pb`.

        Raises:
          errors.ServingError: what is wrong with it.
        """
        self.options = options
        self._model = saved_model.SavedModel(path, options.session_config)
        self.signatures: Mapping[str, message.Message] = self._model.signatures

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float = math.inf,
    ) -> dict[str, np.ndarray]:
        """Runs a signature, maybe together with other requests.

        Args:
          signature: a key of `signatures`.
          inputs: one array per input of the signature, strings as `bytes` objects.
          outputs: which of the signature's outputs; all of them unless given.
          deadline: a `time.monotonic()` moment after which nobody waits for the answer.

        Raises:
          errors.ServingError: TensorFlow's code and message.
        """
        del deadline  # One session run can't be broken off.
        return self._model.run(signature, inputs, outputs)

    def close(self) -> None:
        """Frees its memory. No `run` may be under way."""
        self._model.close()
