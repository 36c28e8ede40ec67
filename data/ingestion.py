"""Events -> instances in Beam: files are read in blocks, shuffled by user, built by shard.

`Ingest` is the PTransform that the `SequenceExampleGen` component runs, `check` what decides
whether its outcome may be used. To get instances without TFX (for a look, or a test):

    python -m data.ingestion --spec kuairand_pure --data_root DIR --output DIR
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import app, flags, logging
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from tfx_bsl.coders import example_coder

from data import events, instances, sources
from data.casting import single_array
from data.columns import ORDER, Column, File, SourceError, event_columns, user_columns
from data.dead_letters import DeadLetter
from data.spec import Spec, load_spec, parse_spec

SHARD_BYTES = 32 << 20
"""Input bytes a shard: times compression and working space, what one worker holds."""
MAX_SHARDS = 4096
SPLITS = ("train", "eval")
_ASIDE = ("dead_letters", "tally")
SUMMARY = "ingestion.json"
DEAD_LETTERS = "ingestion.jsonl"


class IngestionError(ValueError):
    """The input was read, but must not be trained on. Says why, and what to change."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """What happened in one place; tallies add up to the run's summary."""

    counts: collections.Counter
    """`a.b` is count `b` in group `a`."""
    errors: tuple[str, ...] = ()
    """Input that can't be used as a whole: the run fails, with these words."""

    @staticmethod
    def total(tallies: Iterable[Tally]) -> Tally:
        counts: collections.Counter = collections.Counter()
        errors: list[str] = []
        for tally in tallies:
            counts.update(tally.counts)
            errors += tally.errors
        return Tally(counts, tuple(errors))


class Ingest(beam.PTransform):
    """Files -> `{"train", "eval"}` serialized instances, `"dead_letters"` (JSON lines) and
    `"tally"` (one `Tally`).

    Every user's events meet in one shard, so that one pass finds duplicates and builds
    windows. The shuffle moves Arrow tables, not rows.
    """

    def __init__(self, spec: Spec, files: tuple[File, ...], num_shards: int = 0):
        super().__init__()
        self._spec = spec.model_dump_json()
        self._files = files
        self._num_shards = num_shards or _num_shards(files)

    def expand(self, pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        read = (
            pipeline
            | "Files" >> beam.Create(self._files)
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(_Read(self._spec, self._num_shards)).with_outputs(*_ASIDE, main="pieces")
        )
        built = (
            read.pieces
            | "ByUser" >> beam.GroupByKey()
            | "Build" >> beam.ParDo(_Build(self._spec, self._files)).with_outputs(*_ASIDE, *SPLITS)
        )
        letters = (read.dead_letters, built.dead_letters) | "Letters" >> beam.Flatten()
        tallies = (read.tally, built.tally) | "Tallies" >> beam.Flatten()
        return {
            "train": built.train,
            "eval": built.eval,
            "dead_letters": letters,
            "tally": tallies | "Add" >> beam.CombineGlobally(Tally.total),
        }


class _Read(beam.DoFn):
    """A file -> (shard, (role, table)) of its rows; dead letters; tallies."""

    def __init__(self, spec: str, num_shards: int):
        self._spec_json, self._num_shards = spec, num_shards

    def setup(self) -> None:
        self._spec = parse_spec(json.loads(self._spec_json))

    def process(self, file: File) -> Iterator:
        spec = self._spec
        role = "users" if file.role == "users" else "events"
        columns = user_columns(spec) if role == "users" else event_columns(spec)
        try:
            for chunk in sources.read(file, spec):
                table, letters = events.conform(chunk, file, columns)
                counts = {f"rows.{role}": table.num_rows, "dead_letters": len(letters)}
                if role == "events":
                    table = events.select_domain(table, spec)
                yield beam.pvalue.TaggedOutput("tally", Tally(collections.Counter(counts)))
                for letter in letters:
                    yield beam.pvalue.TaggedOutput("dead_letters", letter.to_json())
                for shard, piece in _by_shard(table, spec.user, self._num_shards):
                    yield shard, (role, piece)
        except SourceError as error:
            tally = Tally(collections.Counter(), (str(error),))
            yield beam.pvalue.TaggedOutput("tally", tally)


class _Build(beam.DoFn):
    """All pieces of a shard -> serialized instances by split; dead letters; a tally."""

    def __init__(self, spec: str, files: tuple[File, ...]):
        self._spec_json = spec
        self._paths = {file.number: file.path for file in files}

    def setup(self) -> None:
        self._spec = parse_spec(json.loads(self._spec_json))
        self._encoder = example_coder.RecordBatchToExamplesEncoder()

    def process(self, shard: tuple[int, Iterable[tuple[str, pa.Table]]]) -> Iterator:
        pieces: dict[str, list[pa.Table]] = {"events": [], "users": []}
        for role, piece in shard[1]:
            pieces[role].append(piece)
        try:
            event_table = _concatenate(pieces["events"], event_columns(self._spec))
            user_table = _concatenate(pieces["users"], user_columns(self._spec))
        except SourceError as error:
            tally = Tally(collections.Counter(), (str(error),))
            yield beam.pvalue.TaggedOutput("tally", tally)
            return
        event_table, repeated_events = events.drop_duplicates(event_table)
        user_table, repeated_users = events.drop_duplicates(user_table)
        user_table, letters = _first_rows(user_table, self._spec.user, self._paths)

        batch = instances.build_instances(event_table, user_table, self._spec)
        in_eval = instances.file_split(batch)
        for example, is_eval in zip(self._encoder.encode(batch), in_eval, strict=True):
            yield beam.pvalue.TaggedOutput(SPLITS[int(is_eval)], example)

        for letter in letters:
            yield beam.pvalue.TaggedOutput("dead_letters", letter.to_json())
        counts = _counts(batch, in_eval, self._spec) | {
            "events": event_table.num_rows,
            "duplicates.events": repeated_events,
            "duplicates.users": repeated_users,
            "dead_letters": len(letters),
        }
        yield beam.pvalue.TaggedOutput("tally", Tally(collections.Counter(counts)))


def ingest(
    pipeline: beam.Pipeline,
    spec: Spec,
    data_root: str,
    split_dirs: dict[str, str],
    summary_dir: str,
    dead_letter_dir: str,
    num_shards: int = 0,
) -> dict:
    """Reads all input, writes gzipped TFRecords of instances, the summary and dead letters.

    Args:
      pipeline: empty; is run.
      spec: what to read and how.
      data_root: folder that the spec's relative paths start from.
      split_dirs: folder of each of `SPLITS`.
      summary_dir: folder for `ingestion.json`.
      dead_letter_dir: folder for `ingestion.jsonl`, one malformed row a line.
      num_shards: groups of users that are built at once; by the input's size if 0.

    Returns:
      The summary: counts of events, duplicates, dead letters, users, instances, targets.

    Raises:
      SourceError, IngestionError: see `check`; also for folders that can't be written to.
    """
    files = sources.find(spec, data_root)
    for folder in (summary_dir, dead_letter_dir, *split_dirs.values()):
        _make_writable(folder)
    outcome = pipeline | "Ingest" >> Ingest(spec, files, num_shards)
    for split, folder in split_dirs.items():
        _ = outcome[split] | f"Write[{split}]" >> beam.io.WriteToTFRecord(
            os.path.join(folder, "data_tfrecord"), file_name_suffix=".gz"
        )
    single = {"num_shards": 1, "shard_name_template": ""}
    letters = os.path.join(dead_letter_dir, DEAD_LETTERS)
    _ = outcome["dead_letters"] | "WriteLetters" >> beam.io.WriteToText(letters, **single)
    path = os.path.join(summary_dir, SUMMARY)
    tally_json = outcome["tally"] | beam.Map(lambda t: json.dumps(vars(t)))
    _ = tally_json | "WriteTally" >> beam.io.WriteToText(path, **single)
    pipeline.run().wait_until_finish()

    with FileSystems.open(path) as file:
        written = json.load(file)
    tally = Tally(collections.Counter(written["counts"]), tuple(written["errors"]))
    check(tally, spec, letters)
    summary = summarize(tally, spec)
    with FileSystems.create(path) as file:
        file.write(json.dumps(summary, indent=1).encode())
    return summary


def _make_writable(folder: str) -> None:
    try:
        if not FileSystems.exists(folder):
            FileSystems.mkdirs(folder)
        probe = os.path.join(folder, ".writable")
        with FileSystems.create(probe):
            pass
        FileSystems.delete([probe])
    except (OSError, BeamIOError) as error:
        raise IngestionError(f"output folder {folder} can't be written to: {error}") from None


def summarize(tally: Tally, spec: Spec) -> dict:
    """The run in numbers, as it stands in `ingestion.json`."""
    summary: dict = {"split": spec.split.model_dump(mode="json")}
    for name, count in sorted(tally.counts.items()):
        group = summary
        *groups, leaf = name.split(".")
        for key in groups:
            group = group.setdefault(key, {})
        group[leaf] = int(count)
    summary["stored_per_event"] = tally.counts["stored_events"] / max(tally.counts["events"], 1)
    return summary


def check(tally: Tally, spec: Spec, dead_letters: str) -> None:
    """Raises `SourceError` for unusable input, `IngestionError` for too little usable.

    Both say where to look: `dead_letters` is the file of malformed rows.
    """
    if tally.errors:
        errors = sorted(set(tally.errors))
        more = f"\n… and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise SourceError("\n".join(errors[:10]) + more)
    counts = tally.counts
    dead = counts["dead_letters"]
    rows = counts["rows.events"] + counts["rows.users"] + dead
    limit = spec.source.max_dead_letter_fraction
    if rows and dead / rows > limit:
        raise IngestionError(
            f"{dead} of {rows} rows (events and users together) are malformed, over"
            f" source.max_dead_letter_fraction {limit}: see {dead_letters}"
        )
    where = spec.source.where
    if where is not None and not counts["events"] and counts["rows.events"]:
        raise IngestionError(
            f"none of the {counts['rows.events']} events is wanted: source.where.column"
            f" {where.column!r} is never one of {list(where.values)}"
        )
    if not counts["events"]:
        raise IngestionError(
            "no events in the input: source.path has only empty files"
            + (f" or malformed rows: see {dead_letters}" if dead else "")
        )
    _check_splits(counts, spec)


def _check_splits(counts: Mapping[str, int], spec: Spec) -> None:
    """No split may be empty, nor without a label of a task that has some in the other."""
    by_time = spec.split.by == "time"
    for split in SPLITS:
        if not counts[f"all_targets.{split}"]:
            raise IngestionError(f"split {split!r} is empty: {_split_advice(spec, split, by_time)}")
        for task in spec.tasks:
            labels = {name: counts[f"targets.{task.name}.{name}"] for name in SPLITS}
            if any(labels.values()) and not labels[split]:
                advice = _split_advice(spec, split, by_time and task.per == "impression")
                raise IngestionError(
                    f"task {task.name!r} has no label in split {split!r}: {advice}"
                )


def _split_advice(spec: Spec, split: str, by_time: bool) -> str:
    if spec.domain is not None and split == "eval":
        return (
            "only impressions of the domain are evaluated on, and none of its has"
            f" {spec.domain.channel!r} in {list(spec.domain.values)}. Change domain.values or split"
        )
    if by_time:
        side = "before" if split == "train" else "at or after"
        return f"no labelled event is {side} split.at ({spec.split.at}). Change split.at"
    return (
        f"no user with a label falls into it by split.eval_fraction ({spec.split.eval_fraction})."
        " Change split.eval_fraction, or give more users"
    )


def _num_shards(files: tuple[File, ...]) -> int:
    size = sum(os.path.getsize(file.path) for file in files)
    return int(np.clip(-(-size // SHARD_BYTES), 1, MAX_SHARDS))


def _by_shard(table: pa.Table, user: str, num_shards: int) -> Iterator[tuple[int, pa.Table]]:
    if num_shards == 1 or not table.num_rows:
        yield 0, table
        return
    ids = single_array(table[user]).dictionary_encode()
    of_user = (instances.user_hash(ids.dictionary) % np.uint64(num_shards)).astype(np.int64)
    shards = of_user[ids.indices.to_numpy()]
    order = np.argsort(shards, kind="stable")
    present, starts = np.unique(shards[order], return_index=True)
    for shard, rows in zip(present, np.split(order, starts[1:]), strict=True):
        # A copy, not a slice: pickling a slice would ship the whole table.
        yield int(shard), table.take(pa.array(rows))


def _concatenate(pieces: list[pa.Table], columns: tuple[Column, ...]) -> pa.Table:
    """One table of a shard's pieces. Raises `SourceError` if a column's type varies."""
    if not pieces:
        return events.empty_table(columns)
    for name in pieces[0].column_names:
        types = {str(piece.schema.field(name).type) for piece in pieces}
        if len(types) > 1:
            raise SourceError(
                f"column {name.split(':')[0]!r} has different types in different files"
                f" ({', '.join(sorted(types))}). Write it with one type"
            )
    return pa.concat_tables(pieces).combine_chunks()


def _first_rows(
    users: pa.Table, user: str, paths: dict[int, str]
) -> tuple[pa.Table, list[DeadLetter]]:
    """One row a user: the first. Others, which contradict it, are dead letters."""
    order = np.argsort(users[ORDER].to_numpy())
    ids = single_array(users[user]).take(pa.array(order))
    codes = ids.dictionary_encode().indices.to_numpy()
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    extra = users.take(pa.array(order[~first]))
    letters = [
        DeadLetter(
            paths[row[ORDER] >> 40],
            row[ORDER] & ((1 << 40) - 1),
            "another row of the same user",
            json.dumps(row, default=str),
        )
        for row in extra.to_pylist()
    ]
    return users.take(pa.array(order[first])), letters


def _counts(batch: pa.RecordBatch, in_eval: np.ndarray, spec: Spec) -> dict[str, int]:
    split = batch["target_split"].flatten().to_numpy()
    counts = {
        "users": int(pc.sum(batch["window_last"].flatten()).as_py() or 0),
        "stored_events": int(pc.sum(batch["sequence_length"].flatten()).as_py() or 0),
    }
    for number, name in enumerate(SPLITS):
        counts[f"instances.{name}"] = int((in_eval == number).sum())
        counts[f"all_targets.{name}"] = int((split == number).sum())
        for task in spec.tasks:
            labels = batch[task.label_feature].flatten().to_numpy()
            labelled = ~np.isnan(labels) & (split == number)
            counts[f"targets.{task.name}.{name}"] = int(labelled.sum())
    return counts


def _main(argv: list[str]) -> None:
    del argv
    spec = load_spec(flags.FLAGS.spec)
    output = flags.FLAGS.output
    summary = ingest(
        beam.Pipeline(argv=["--direct_num_workers=1", "--direct_running_mode=in_memory"]),
        spec,
        flags.FLAGS.data_root,
        {split: os.path.join(output, f"Split-{split}") for split in SPLITS},
        output,
        os.path.join(output, "dead_letters"),
    )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    flags.DEFINE_string("spec", None, "YAML file, or name of one in data/specs.", required=True)
    flags.DEFINE_string("data_root", None, "Folder that source.path starts from.", required=True)
    flags.DEFINE_string("output", None, "Folder to write Split-train and -eval to.", required=True)
    logging.set_verbosity(logging.WARNING)
    app.run(_main)
