"""Writes the Kubeflow TFJob that trains a task on a cluster's chief, workers and ps.

Without --output the manifest is printed. Apply it with `kubectl apply -f`.
"""

from __future__ import annotations

import pathlib

from absl import flags

from modules.training.cluster.config import ClusterError, load_cluster
from modules.training.cluster.tfjob import manifest_yaml

FLAGS = flags.FlagValues()
flags.DEFINE_string("cluster", None, "The cluster's YAML, with 'kubernetes'.", flag_values=FLAGS)
flags.DEFINE_string("task", None, "The task's path in the shared volume.", flag_values=FLAGS)
flags.DEFINE_string("output", "", "File to write.", flag_values=FLAGS)


def main(values: flags.FlagValues) -> int:
    """Writes or prints it."""
    if not values.cluster or not values.task:
        raise flags.Error("--cluster and --task: give both")
    try:
        text = manifest_yaml(load_cluster(values.cluster), values.task)
    except ClusterError as error:
        raise flags.Error(str(error)) from None
    if not values.output:
        print(text, end="")
        return 0
    path = pathlib.Path(values.output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(path)
    return 0
