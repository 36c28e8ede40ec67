"""The sparse tier: large tables in parameter-server processes of their own.

The processes are plain `tf.distribute.Server`s without any code of ours: trainers send graphs
(`graph.py`) whose resources stay in the process when the session is over. So tables outlive
trainers, and any number of trainers share them.

- `client.py`: what a trainer uses: pull and push rows, save, restore.
- `connection.py`: one parameter server, through its deaths and restarts.
- `graph.py`: what runs in it, in one session call for all tables.
- `layout.py`: which tables a tier holds. `partition.py`: which rows of a batch are where.

The port of a server has no authentication: private networks only.
"""
