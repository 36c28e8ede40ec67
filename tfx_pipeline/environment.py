"""Environment variables that have to be set before TensorFlow is first imported."""

import os

VARIABLES = {
    "TF_USE_LEGACY_KERAS": "1",  # tf.keras is Keras 2, which TFT, TFMA and the saved models expect
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "PYTHONWARNINGS": "ignore",  # reaches the subprocesses of Beam too
}


def prepare() -> None:
    """Sets what isn't set already."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
