"""The model server. Reading order: `__main__` and `flags`, `server` (what is put together), `api`
(the methods of both ports), `predict`, `classify`, `regress`, `multi_inference`, `metadata` (what
is answered), `manager`, `models`, `model` and `version` (what is served, and its life), `servable`
(runs one version), `saved_model`, `c_api`; `grpc_services`, and `rest_port` with `rest`,
`rest_body` and `rest_connection` (how it is asked). `serving.rpc` has what the knowledge centre
needs too.
"""
