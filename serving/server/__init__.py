"""The model server. Reading order: `__main__` (flags), `server` (gRPC), `predict` and `status`
(what is answered), `model` (versions and their life), `saved_model` (runs one), `c_api`.
"""
