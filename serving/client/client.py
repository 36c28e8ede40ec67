"""A typed client of any server that speaks TF Serving's gRPC API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.client.connection import Connection
from serving.client.exchange import Retries
from serving.client.flows import DEFAULT_SIGNATURE, Flows, Model, VersionStatus
from serving.client.signatures import Signature
from serving.client.tls import Tls


class Client:
    """Asks one server. One connection, made at the first call and reused; thread-safe.

    Every method raises `errors.ServingError` with the server's code and message; UNAVAILABLE
    means that no server answers at `target`. `timeout` is in seconds, for the whole call with its
    retries.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        retries: Retries = Retries(),  # noqa: B008
        max_batch_rows: int | None = None,
    ):
        """
        Args:
          target: `host:port`.
          tls: encrypts; plain text unless given.
          retries: of calls the server was away or too busy for.
          max_batch_rows: a `predict` of more rows is split, asked in parallel and joined; for
            signatures that answer each row by itself.
        """
        self._connection = Connection(target, tls)
        self._flows = Flows(target, retries, max_batch_rows)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Waits for a server to come up at the target; UNAVAILABLE if none does in time."""
        self._connection.wait_ready(timeout)

    def wait_available(
        self, model: str, *, version: int | None = None, timeout: float = 30.0
    ) -> None:
        """Waits for a server, and for a version of the model (any unless given) to be loaded.

        Raises:
          errors.ServingError: DEADLINE_EXCEEDED, not within `timeout` seconds, and in which state
            its versions are.
        """
        self._connection.run(self._flows.wait_available(Model(model, version, timeout)))

    def predict(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> dict[str, np.ndarray]:
        """Runs a signature. Names, dtypes and shapes are checked before anything is sent.

        Args:
          inputs: input name -> array or nested list. Numbers are cast where their kind allows
            (int to float, float64 to float32), never float to int; strings are `bytes` or `str`.
          version: the newest unless given.
          outputs: only these outputs; all unless given.

        Returns:
          Output name -> array; strings as `bytes` objects.

        Raises:
          errors.ServingError: INVALID_ARGUMENT (also when checked here), NOT_FOUND,
            FAILED_PRECONDITION (no such signature), UNAVAILABLE, DEADLINE_EXCEEDED, ….
        """
        asked = Model(model, version, timeout)
        return self._connection.run(self._flows.predict(asked, inputs, signature, outputs))

    def score(
        self,
        model: str,
        features: Mapping[str, object],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> dict[str, np.ndarray]:
        """Scores one user's candidates; the features are checked against the model's own spec.

        Args:
          features: see `features.typed_example`, e.g. `{"user_id": "u1", "sequence_item":
            [3, 1], "candidate_price": [9, 12.5]}`.
          signature: one that takes `examples`, e.g. `embed`.

        Returns:
          Output name -> array without the batch's axis: `click` [K], `embedding` [D].

        Raises:
          errors.ServingError: as `predict`; INVALID_ARGUMENT names the feature at fault.
        """
        return self.score_many(
            model, [features], signature=signature, version=version, outputs=outputs,
            timeout=timeout,
        )[0]  # fmt: skip

    def score_many(
        self,
        model: str,
        users: Sequence[Mapping[str, object]],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> list[dict[str, np.ndarray]]:
        """`score` of several users, a request each, in parallel: none is padded to another."""
        asked = Model(model, version, timeout)
        return self._connection.run(self._flows.score(asked, users, signature, outputs))

    def metadata(
        self, model: str, *, version: int | None = None, timeout: float = 10.0
    ) -> dict[str, Signature]:
        """The model's signatures by name."""
        return self._connection.run(self._flows.metadata(Model(model, version, timeout)))

    def status(
        self, model: str, *, version: int | None = None, timeout: float = 10.0
    ) -> list[VersionStatus]:
        """The state of one version, or of all the server knows, newest first."""
        return self._connection.run(self._flows.status(Model(model, version, timeout)))
