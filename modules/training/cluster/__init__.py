"""Where training runs: the cluster's config, its servers, and the supervisor of a local one.

Nothing here knows the model. `config.py` is imported everywhere and imports no TensorFlow.
"""
