"""The model server. Reading order: `__main__` (flags), `server` (gRPC), `predict` and `metadata`
(what is answered), `models`, `model` and `version` (what is served, and its life), `servable`
(runs one version), `saved_model`, `c_api`.
"""
