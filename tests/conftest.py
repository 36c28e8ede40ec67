"""What every test needs before TensorFlow is imported."""

from tfx_pipeline import environment

environment.prepare()
