"""One loaded SavedModel: its signatures, and running them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence

import grpc
import numpy as np

from serving import errors, protos
from serving.server import c_api, native_tensor
from serving.server.c_api import BLOCKING, QUICK

SERVE_TAG = b"serve"
_CALLING_THREAD = -1
"""RunOptions.inter_op_thread_pool."""


class SavedModel:
    """A session over a SavedModel directory. Thread-safe; the GIL is free while it runs.

    Attributes:
      signatures: signature name -> SignatureDef.
    """

    def __init__(self, path: str, config: bytes = b"", *, in_calling_thread: bool = False):
        """Loads it: reads the graph and the variables, runs the initialisers.

        Args:
          path: the directory that holds `saved_model.pb`.
          config: a serialized `tensorflow.ConfigProto` (threads, …).
          in_calling_thread: operations run one after the other in the thread that calls `run`,
            instead of being handed to a pool: a third less CPU for requests of a few rows. How
            many cores each of them uses, `intra_op_parallelism_threads` says, for the process.

        Raises:
          errors.ServingError: what TensorFlow says is wrong with it.
        """
        self._graph = QUICK.TF_NewGraph()
        self._session = None
        options = QUICK.TF_NewSessionOptions()
        meta_graph = QUICK.TF_NewBuffer()
        try:
            with c_api.Status() as status:
                QUICK.TF_SetConfig(options, config, len(config), status.pointer)
                status.check()
                self._session = BLOCKING.TF_LoadSessionFromSavedModel(
                    options,
                    None,
                    path.encode(),
                    (ctypes.c_char_p * 1)(SERVE_TAG),
                    1,
                    self._graph,
                    meta_graph,
                    status.pointer,
                )
                status.check()
            content = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
        except errors.ServingError:
            self.close()
            raise
        finally:
            QUICK.TF_DeleteBuffer(meta_graph)
            QUICK.TF_DeleteSessionOptions(options)
        parsed = protos.MetaGraphSignatures.FromString(content)
        parsed.DiscardUnknownFields()  # the graph
        self.signatures = dict(parsed.signature_def)
        self._outputs = functools.cache(self._find_outputs)
        pool = _CALLING_THREAD if in_calling_thread else 0
        self._run_options = protos.RunOptions(inter_op_thread_pool=pool).SerializeToString()

    def run(
        self,
        signature: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        outputs: Sequence[str] | None = None,
        held: native_tensor.Held | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs a signature once, for one or more requests.

        Args:
          signature: a key of `signatures`.
          requests: one array per input of the signature each, strings as `bytes` objects. Several
            are joined as `native_tensor.from_arrays` says.
          outputs: which of the signature's outputs are returned; all of them unless given.
          held: inputs that all of the requests share, instead of one of each.

        Returns:
          Output name -> array, in the order asked for.

        Raises:
          errors.ServingError: TensorFlow's code and message.
        """
        definition = self.signatures[signature]
        # TensorFlow prepares and keeps a graph for each set and order of names, which takes longer
        # than computing an output for nothing, and clients can ask for any set.
        own_names = sorted(requests[0])
        shared = held.tensors if held else {}
        fed_names, fetched_names = [*own_names, *sorted(shared)], sorted(definition.outputs)
        feeds = self._outputs(tuple(definition.inputs[name].name for name in fed_names))
        fetches = self._outputs(tuple(definition.outputs[name].name for name in fetched_names))
        run_options = c_api.Buffer(
            ctypes.cast(self._run_options, c_api.pointer), len(self._run_options), None
        )
        made = native_tensor.pointers(len(own_names))
        fed = native_tensor.pointers(len(feeds))
        fetched = native_tensor.pointers(len(fetches))
        try:
            for i, name in enumerate(own_names):
                made[i] = native_tensor.from_arrays([request[name] for request in requests])
            fed[:] = [*made, *(shared[name] for name in sorted(shared))]
            with c_api.Status() as status:
                BLOCKING.TF_SessionRun(
                    self._session,
                    ctypes.byref(run_options),
                    feeds,
                    fed,
                    len(feeds),
                    fetches,
                    fetched,
                    len(fetches),
                    None,
                    0,
                    None,
                    status.pointer,
                )
                status.check()
            tensors = dict(zip(fetched_names, fetched, strict=True))
            names = definition.outputs if outputs is None else outputs
            return {name: native_tensor.to_array(tensors[name]) for name in names}
        finally:
            native_tensor.delete(made)
            native_tensor.delete(fetched)

    def close(self) -> None:
        """Frees the session, its variables and its graph. No `run` may be under way."""
        with c_api.Status() as status:
            if self._session:
                BLOCKING.TF_CloseSession(self._session, status.pointer)
                BLOCKING.TF_DeleteSession(self._session, status.pointer)
                self._session = None
            if self._graph:
                BLOCKING.TF_DeleteGraph(self._graph)
                self._graph = None

    def _find_outputs(self, tensor_names: tuple[str, ...]) -> ctypes.Array:
        """`operation:index` names to a TF_Output array; cached per signature."""
        found = (c_api.Output * len(tensor_names))()
        for i, name in enumerate(tensor_names):
            operation, _, index = name.rpartition(":")
            pointer = QUICK.TF_GraphOperationByName(self._graph, operation.encode())
            if not pointer:
                raise errors.ServingError(
                    grpc.StatusCode.INTERNAL, f"a signature names {name!r}, not in the graph"
                )
            found[i] = c_api.Output(pointer, int(index))
        return found
