"""The one error both ends raise: a gRPC status code and one clear message."""

import grpc


class ServingError(Exception):
    """A request, a model or a server failed.

    Attributes:
      code: gRPC's status code, as TF Serving would answer it.
      message: what failed and, where known, what to do.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


def invalid(text: str) -> ServingError:
    """INVALID_ARGUMENT: the request is wrong, whatever is served."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, text)


def failed_precondition(text: str) -> ServingError:
    """FAILED_PRECONDITION: the request doesn't fit the model that is served."""
    return ServingError(grpc.StatusCode.FAILED_PRECONDITION, text)


CODES = {code.value[0]: code for code in grpc.StatusCode}
"""Status code by its number; TensorFlow's C API uses the same ones."""
