"""What the data is: the spec, sources, events, instances, schema and the simulator.

Start with `spec.py`, then `docs/contracts.md`. `sources/` reads files, `events.py` casts
their rows by the spec, `instances.py` turns whole users into `tf.Example`s, `ingestion.py`
does it all in Beam, `schema.py` derives the TFMD schema. Nothing here knows models or TFX.
"""
