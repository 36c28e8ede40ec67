"""What the data is: the spec, sources, events, instances, schema and the simulator.

Start with `spec.py` and `channels.py`, then `docs/contracts.md`; `spec_rules.py` refuses what no
section of a spec can refuse by itself. `columns.py` says what is read of a source,
`sources/` reads it, `events.py` makes events of its rows (`casting.py` casts their values,
`identity.py` tells which are equal), `instances.py` turns whole users into `tf.Example`s,
`ingestion.py` does it all in Beam, `schema.py` derives the TFMD schema. Nothing here knows
models or TFX.
"""
