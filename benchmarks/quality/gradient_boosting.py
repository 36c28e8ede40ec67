"""LightGBM on KuaiRand-Pure's columns: what one would use instead of a model of sequences.

    python -m benchmarks.quality.gradient_boosting --data=../shared/data/kuairand-pure

300 trees of 63 leaves at a rate of 0.05, fit and tested on the spec's split (by its own `time`),
exact duplicates dropped. It gets the columns of user, video and moment, and how many exposures a
user's earlier history has and which share of them was liked and viewed long; then `counts`, what
those exposures of all users say of the video (the spec's `video_` channels); then `more`, the
video's age and format and the same counts of its author and tag. Mean and standard deviation over
seeds, which draw the rows that a tree sees.
"""

from __future__ import annotations

import statistics
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from rich.console import Console
from rich.table import Table

from data import sources
from data.sources import kuairand
from data.sources.joining import left_join
from data.spec import Spec, load_spec
from modules.metrics.auc import auc
from modules.metrics.gauc import gauc

_DATA = flags.DEFINE_string("data", "../shared/data/kuairand-pure", "KuaiRand-Pure's folder.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3"], "Of LightGBM.")
_LABELS = ("is_click", "long_view")
_VIDEO = ("video_id", "author_id", "music_id", "tag", "upload_type", "video_type")
_MOMENT = ("tab", "hour", "duration_ms")
_SETTINGS: dict[str, Any] = {
    "n_estimators": 300,
    "num_leaves": 63,
    "learning_rate": 0.05,
    "subsample": 0.8,
    "subsample_freq": 1,
    "verbose": -1,
}


def main(argv: list[str]) -> None:
    del argv
    spec = load_spec("kuairand_pure")
    try:
        rows, user_columns = _rows(spec, _DATA.value)
    except sources.SourceError as error:
        raise app.UsageError(str(error)) from None
    columns = [*user_columns, *_VIDEO, *_MOMENT, "history", "liked", "viewed"]
    sets = {"history counts": columns, "counts": [*columns, *kuairand.COUNTED]}
    sets["more"] = [*sets["counts"], "age", "format", *_add_more(rows)]
    is_train = (rows["time_ms"].astype("int64") < spec.split.at_ms).to_numpy()
    user = rows["user_id"].astype("int64").to_numpy()[~is_train]
    table = Table("columns", "label", "AUC", "GAUC", title="LightGBM, mean ± deviation over seeds")
    for name, chosen in sets.items():
        features = pd.DataFrame({column: _numbers(rows[column]) for column in chosen})
        for label in _LABELS:
            target = rows[label].astype("int8").to_numpy()
            found = []
            for seed in map(int, _SEEDS.value):
                model = lightgbm.LGBMClassifier(**_SETTINGS, random_state=seed)
                model.fit(features[is_train], target[is_train])
                scores = np.asarray(model.predict_proba(features[~is_train]))[:, 1]
                found.append(
                    (auc(target[~is_train], scores), gauc(user, target[~is_train], scores))
                )
            table.add_row(name, label, *(_said(values) for values in zip(*found, strict=True)))
    Console().print(table)


def _rows(spec: Spec, folder: str) -> tuple[pd.DataFrame, list[str]]:
    """The log's impressions, each once, with their users' and videos' columns as text; and which
    are the users'."""
    files = sources.find(spec, folder)
    paths = [file.path for file in files if file.role == "history"]
    if not paths:
        raise sources.SourceError(f"{folder}: no {kuairand.HISTORY}, which the counts are of")
    log, users = (
        pa.concat_tables(
            [c.table for file in files if file.role == role for c in sources.read(file, spec)]
        )
        for role in ("events", "users")
    )
    joined = left_join(log, users, "user_id").to_pandas().drop_duplicates(ignore_index=True)
    history = pq.read_table(paths[0]).to_pandas().set_index("user_id")
    seen = history["watch_seq"].str.len()
    of = joined["user_id"].astype("int64")
    joined["history"] = of.map(history["history_len"])
    joined["liked"] = of.map(history["like_seq"].str.len() / seen)
    joined["viewed"] = of.map(history["long_watch_seq"].str.len() / seen)
    return joined, [name for name in users.column_names if name != "user_id"]


def _add_more(rows: pd.DataFrame) -> list[str]:
    """Adds `age`, `format` and the counts of author and tag; the counts' names."""
    uploaded = pd.to_datetime(rows["upload_dt"]).astype("int64") / 1e9
    rows["age"] = rows["time_ms"].astype("int64") / 1e3 - uploaded
    rows["format"] = rows["server_height"].astype(float) / rows["server_width"].astype(float)
    exposures, viewed = (
        rows[name].astype(float) for name in (kuairand.COUNTED[0], kuairand.COUNTED[2])
    )
    videos = pd.DataFrame({"exposures": exposures, "viewed": exposures * viewed})
    first = ~rows["video_id"].duplicated()
    names = []
    for key in ("author_id", "tag"):
        sums = videos[first].groupby(rows[key][first]).sum()
        names += [f"{key}_exposures", f"{key}_viewed"]
        rows[names[-2]] = rows[key].map(sums["exposures"])
        rows[names[-1]] = rows[key].map(sums["viewed"] / sums["exposures"])
    return names


def _numbers(column: pd.Series) -> np.ndarray:
    """Numbers as they are, text as the place of its value among all."""
    numbers = pd.to_numeric(column, errors="coerce")
    if (numbers.notna() == column.notna()).all():
        return numbers.to_numpy()
    return column.astype("category").cat.codes.to_numpy()


def _said(values: tuple[float, ...]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


if __name__ == "__main__":
    app.run(main)
