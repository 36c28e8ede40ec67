"""`Input`: the tf.Examples of Classify, Regress and MultiInference, as one string tensor."""

from __future__ import annotations

import numpy as np
from google.protobuf import message

from serving import errors


def serialized_examples(sent: message.Message) -> np.ndarray:
    """The examples of an `Input`, each behind the context if there is one.

    Serialized messages set one behind the other parse as one, where the later value of a feature
    wins: so an example's own features go before the context's, as in TF Serving (util.cc).

    Returns:
      `bytes` objects [B], B > 0.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, there are none.
    """
    context = b""
    examples = sent.example_list.examples
    if sent.WhichOneof("kind") == "example_list_with_context":
        examples = sent.example_list_with_context.examples
        context = sent.example_list_with_context.context.SerializeToString()
    if not examples:
        raise errors.invalid("Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array
