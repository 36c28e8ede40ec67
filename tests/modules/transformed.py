"""Raw instances of a small spec through real Transform, and Trainers on them."""

from __future__ import annotations

import json
import types

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import metadata_io
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder
from tfx_bsl.public import tfxio

from data.instances import build_instances, file_split
from data.schema import schema_of
from modules.preprocessing import preprocessing_fn
from modules.training import files
from modules.training.input.file_order import file_order_batches
from tests.data.small import CHANNELS, event_table, small_spec, user_table

NUM_USERS = 60


def two_phase_spec(**overrides):
    """Every sequence channel is predicted; all else as in `small_spec`."""
    raw = {
        "sequence": {"max_length": 4, "window": 12, "targets": "causal"},
        "model": {
            "hidden_dim": 16,
            "num_blocks": 1,
            "num_heads": 2,
            "num_experts": 2,
            "ffn_dim": 16,
        },
        "channels": CHANNELS,
        "training": {},
    } | overrides
    channels = [c | {"mask_prediction": c["scope"] == "sequence"} for c in raw["channels"]]
    return small_spec(**raw | {"channels": channels})


def raw_rows():
    """Users of 0 to 30 events, every channel missing now and then."""
    rng = np.random.default_rng(0)

    def maybe(value):
        return None if rng.random() < 0.15 else value

    rows = [
        {
            "user_id": f"u{user}",
            "time_ms": 1000 * int(t),
            "item": maybe(int(rng.zipf(1.6)) % 50),
            "shop": maybe(f"s{rng.integers(6)}"),
            "place": maybe(["home", "été", "work"][rng.integers(3)]),
            "tags": maybe([f"t{i}" for i in rng.choice(5, rng.integers(0, 4), replace=False)]),
            "price": maybe(float(np.round(rng.lognormal(2), 2))),
            "click": maybe(str(rng.integers(2))),
            "stars": maybe(["a", "b", "c"][rng.integers(3)]),
            "spend": maybe(float(rng.normal())),
        }
        for user in range(NUM_USERS)
        for t in np.sort(rng.integers(0, 500, rng.integers(0, 30)))
    ]
    users = [
        {
            "user_id": f"u{user}",
            "city": maybe(["rome", "oslo"][user % 2]),
            "age": maybe(20.0 + user),
            "level": maybe(["tin", "gold"][user % 2]),
        }
        for user in range(NUM_USERS)
    ]
    return rows, users


class Transformed:
    """The small spec's instances, as files before and after Transform."""

    def __init__(self, folder, spec, raw=None):
        """`raw`: of `raw_rows`' form."""
        self.spec, self.folder = spec, folder
        rows, users = raw or raw_rows()
        self.raw = build_instances(event_table(rows, spec), user_table(users, spec), spec)
        self.is_eval = file_split(self.raw)
        schema = schema_of(spec)
        self.examples = RecordBatchToExamplesEncoder().encode(self.raw)
        for split, keep in (("train", ~self.is_eval), ("eval", self.is_eval)):
            chosen = np.array(self.examples, object)[keep]
            _write(folder / "raw" / f"Split-{split}" / "0.gz", chosen)
        source = tfxio.TFExampleRecord(str(folder / "raw/*/*.gz"), schema=schema)
        config = {"spec": spec.model_dump_json()}
        argv = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]
        with beam.Pipeline(argv=argv) as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
            data = (pipeline | source.BeamSource(), source.TensorAdapterConfig())
            transform = data | tft_beam.AnalyzeDataset(lambda x: preprocessing_fn(x, config))
            _ = transform | tft_beam.WriteTransformFn(str(folder / "graph"))
            apply = tft_beam.TransformDataset(output_record_batches=True)
            applied, _ = (data, transform) | apply
            _ = (
                applied
                | "Serialize" >> beam.MapTuple(lambda batch, _: _ipc(batch))
                | "Write" >> beam.io.WriteToTFRecord(str(folder / "arrow" / "part"))
            )
        # TFX's Transform leaves the raw schema beside the graph; so does this.
        metadata_io.write_metadata(
            tft.DatasetMetadata(schema),
            str(folder / "graph" / tft.TFTransformOutput.RAW_METADATA_DIR),
        )
        self.output = tft.TFTransformOutput(str(folder / "graph"))
        encoder = RecordBatchToExamplesEncoder(self.output.transformed_metadata.schema)
        paths = [str(p) for p in sorted((folder / "arrow").glob("part*"))]
        arrow = tf.data.TFRecordDataset(paths).as_numpy_iterator()
        batches = [_from_ipc(record) for record in arrow]
        encoded = np.array([e for batch in batches for e in encoder.encode(batch)], object)
        is_eval = np.concatenate([file_split(batch) for batch in batches])
        for split, keep in (("train", ~is_eval), ("eval", is_eval)):
            _write(folder / "transformed" / f"Split-{split}" / "0.gz", encoded[keep])
        self.fn_args = types.SimpleNamespace(
            transform_output=str(folder / "graph"),
            train_files=[str(folder / "transformed/Split-train/*")],
            eval_files=[str(folder / "transformed/Split-eval/*")],
        )

    def arguments(self, phase, spec, folder, base_model, **config):
        """A Trainer's."""
        folder = folder / phase.NAME
        return types.SimpleNamespace(
            **vars(self.fn_args),
            custom_config={"spec": spec.model_dump_json(), **config},
            base_model=base_model,
            model_run_dir=str(folder / "run"),
            serving_model_dir=str(folder / "model"),
        )

    def train(self, phase, spec, folder, base_model, **config):
        """Runs a Trainer; its model artifact's folder."""
        fn_args = self.arguments(phase, spec, folder, base_model, **config)
        phase.run_fn(fn_args)
        records = (folder / phase.NAME / "run" / "history.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(r)["loss"] for r in records]).all()
        return fn_args.serving_model_dir

    def batches(self, split, batch_size=8, **kwargs):
        paths = files.of_split(self.fn_args, self.spec, split)
        return file_order_batches(paths, self.output, self.spec, split, batch_size, **kwargs)


def _ipc(batch):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _from_ipc(record):
    with pa.ipc.open_stream(record) as reader:
        return reader.read_next_batch()


def _write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions("GZIP")) as writer:
        for record in records:
            writer.write(record)
