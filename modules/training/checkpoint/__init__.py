"""Checkpoints: one format that every placement and every number of shards writes and restores.

- `store.py`: the folder of checkpoints: what is complete, verified, newest, too old.
- `draft.py`: one that is being written; it exists for readers only when it is complete.
- `manifest.py`, `checksum.py`: what is in one, and whether it still is.
- `tables.py`: touched rows of large tables, as chunks. `dense.py`: everything else.
- `whole.py`: a copy that needs no other checkpoint, to be handed on.
- `writer.py`: saves in the background. `preemption.py`: SIGTERM and SIGINT as a request.

    <checkpoints>/step-000000500/
      manifest.json
      dense.index, dense.data-…
      tables/<table>/<shard>-of-<n>/<chunk>.index, .data-…   rows touched since `parent`
"""
