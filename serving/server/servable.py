"""A loaded version as the API methods see it: its signatures, and running them."""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf import message

from serving.server import (
    added_tasks,
    batch_scheduler,
    batching,
    contract,
    merging,
    native_tensor,
    saved_model,
    user_cache,
    warmup,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How versions are loaded and run, the same for all of them.

    Attributes:
      session_config: a serialized `tensorflow.ConfigProto` for every session.
      in_calling_thread: run each request's operations in its own thread (saved_model.py).
      batching: how requests are merged; None runs each by itself.
      warmup: run each version before it answers, so that no user meets the slow first runs.
      signature_method_name_check: a signature serves only the method it was exported for.
      user_cache_size: user embeddings kept, for models that offer it (contract.py); 0 keeps none.
      user_cache_seconds: how long one is kept.
    """

    session_config: bytes = b""
    in_calling_thread: bool = True
    batching: batching.Parameters | None = batching.Parameters()
    warmup: bool = True
    signature_method_name_check: bool = False
    user_cache_size: int = 100_000
    user_cache_seconds: float = 60.0


class Servable:
    """One version in memory. Thread-safe.

    Attributes:
      options: what it was loaded with.
      mergings: how requests are merged, for the signatures where they may be.
      scheduler: merges them; None if requests run each by itself.
      users: the embeddings of users seen lately; None if the model doesn't offer them.
      added_tasks: what is answered beside the model's own tasks; None if it takes none.
    """

    def __init__(self, path: str, options: Options):
        """Loads and warms it up.

        Args:
          path: the directory that holds `saved_model.pb`.

        Raises:
          errors.ServingError: what is wrong with it.
        """
        self.options = options
        self._model = saved_model.SavedModel(
            path, options.session_config, in_calling_thread=options.in_calling_thread
        )
        try:
            declared = contract.read(path, self._model.signatures)
            self._prepare(declared)
            self._add_tasks(declared.added_tasks, path)
            if options.warmup:
                warmup.warm_up(self, path)
        except BaseException:
            self.close()
            raise

    def _prepare(self, declared: contract.Contract) -> None:
        parameters = self.options.batching or batching.Parameters()
        assumed = {
            name: merging.assumed(signature, parameters)
            for name, signature in self._model.signatures.items()
            if name not in declared.batching
        }
        mergings = {**assumed, **declared.batching}
        self.mergings = {name: found for name, found in mergings.items() if found is not None}
        self.scheduler = None
        if self.options.batching:
            if names := sorted(self.mergings.keys() & assumed.keys()):
                logging.info(
                    "requests to %s are merged by their rows, as the shapes suggest; where rows"
                    " depend on each other, say null in %s",
                    ", ".join(names),
                    contract.FILE,
                )
            self.scheduler = batch_scheduler.BatchScheduler(self.options.batching, self._process)
        self.users = None
        if declared.users and self.options.user_cache_size:
            self.users = user_cache.UserCache(
                declared.users,
                self.run_signature,
                self.options.user_cache_size,
                self.options.user_cache_seconds,
            )

    def _add_tasks(self, declared: contract.AddedTasks | None, path: str) -> None:
        self.added_tasks = None
        if declared:
            self.added_tasks = added_tasks.AddedTasks(
                declared,
                self._model.signatures[declared.signature],
                pathlib.Path(path).parent / added_tasks.FOLDER / declared.backbone,
                self._run_model,
            )
            self.added_tasks.poll()

    @property
    def signatures(self) -> Mapping[str, message.Message]:
        """Signature name -> SignatureDef, as clients see them."""
        if self.added_tasks is None:
            return self._model.signatures
        return {**self._model.signatures, self.added_tasks.name: self.added_tasks.signature}

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float = math.inf,
    ) -> dict[str, np.ndarray]:
        """Answers a request: together with others, with users known already, as fits the model.

        Args:
          signature: a key of `signatures`.
          inputs: one array per input of the signature, strings as `bytes` objects.
          outputs: which of the signature's outputs; all of them unless given.
          deadline: a `time.monotonic()` moment after which nobody waits for the answer.

        Raises:
          errors.ServingError: TensorFlow's code and message; DEADLINE_EXCEEDED or
            RESOURCE_EXHAUSTED, it never ran.
        """
        if outputs is None:
            outputs = tuple(self.signatures[signature].outputs)
        if self.users and signature == self.users.signature:
            return self.users.run(inputs, outputs, deadline)
        return self.run_signature(signature, inputs, outputs, deadline)

    def run_signature(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        deadline: float = math.inf,
    ) -> dict[str, np.ndarray]:
        """`run`, but of this signature whatever users are known."""
        if self.added_tasks and signature == self.added_tasks.name:
            return self.added_tasks.run(inputs, outputs, deadline)
        return self._run_model(signature, inputs, outputs, deadline)

    def _run_model(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        deadline: float,
        held: native_tensor.Held | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs a signature of the model's own; `held` are inputs that requests share."""
        if deadline <= time.monotonic():
            raise batch_scheduler.expired()
        merges = self.mergings.get(signature)
        if self.scheduler and merges:
            shapes = merging.shapes_of(inputs, merges)
            if shapes is not None:
                group = merging.Group(signature, tuple(outputs), shapes, held)
                return self.scheduler.run(group, inputs, merging.num_rows(inputs), deadline)
        return self._model.run(signature, [inputs], outputs, held)

    def _process(
        self, group: merging.Group, requests: Sequence[merging.Arrays]
    ) -> list[dict[str, np.ndarray]]:
        assert self.options.batching
        return merging.run_merged(
            self._model,
            group,
            requests,
            self.mergings[group.signature],
            self.options.batching.allowed_batch_sizes,
        )

    def close(self) -> None:
        """Frees its memory. No `run` may be under way."""
        self._model.close()
