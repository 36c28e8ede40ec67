"""What answers: a TF Serving-compatible model server, a client, the knowledge centre.

Start reading at `server/__main__.py` (flags, start-up), `client/client.py` or
`knowledge/center.py`. What both ends share: `protos` (TF's and TF Serving's messages in a private
pool), `tensors` (messages to NumPy and back), `errors`. Nothing here imports `data`, `modules`,
`tfx_pipeline` or TensorFlow's Python package: a pushed SavedModel is self-contained.
"""
