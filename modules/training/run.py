"""A TFX Trainer's training: in its own process, in a local cluster that it starts, or by a TFJob.

However it trained, the Trainer's process makes the model of the last checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import pathlib
import shutil
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

from data.spec import parse_spec
from modules.training.checkpoint.store import Checkpoints
from modules.training.cluster.config import Cluster, Threads, parse_cluster
from modules.training.cluster.events import CLUSTER_EVENTS, TRAINING_EVENTS, Event, read_events
from modules.training.cluster.possible import require_possible
from modules.training.cluster.supervisor import Supervisor, stopped_by_signals
from modules.training.cluster.tfjob import manifest_yaml
from modules.training.loop import Preempted
from modules.training.task import TrainingTask
from modules.training.train import CHECKPOINTS, Trained, train

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

_LOG = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("progress")
_PROGRESS_SECONDS = 2.0
_HISTORY = "history.jsonl"
_KEPT = (_HISTORY, TRAINING_EVENTS, CLUSTER_EVENTS)


class OnKubernetes(Exception):
    """A TFJob is to train now; the message says which one to apply."""


def run(name: str, fn_args: FnArgs) -> None:
    """Trains a phase to its end and writes its model artifact.

    On Kubernetes (`cluster.kubernetes`) these are two calls: the first one leaves the task and its
    TFJob in the shared volume; the next one, when that has trained, writes the artifact.

    `custom_config` says where: `cluster` is a cluster's JSON (`modules/training/cluster/config.py`;
    without it: in this process), `state` a folder that outlives this execution: the same Trainer
    started again goes on from the newest checkpoint in it.

    Raises:
      OnKubernetes: it isn't trained yet.
      KeyboardInterrupt: it was told to stop, and has saved.
      ClusterError: the cluster's placement can't train this spec, or `state` isn't in its volume.
      ClusterFailed: a process of the cluster died more often than it may.
    """
    phase = importlib.import_module(f"modules.training.{name}")
    cluster = parse_cluster(fn_args.custom_config.get("cluster", {}), "custom_config.cluster")
    require_possible(cluster, parse_spec(json.loads(fn_args.custom_config["spec"])))
    state = fn_args.custom_config.get("state") or os.path.join(fn_args.model_run_dir, "state")
    folder = pathlib.Path(state) / f"{name}-{_fingerprint(fn_args)}"
    folder.mkdir(parents=True, exist_ok=True)
    trained = _trained(folder)
    if trained is None:
        trained = _train(phase, fn_args, folder, cluster)
    phase.finish(fn_args, trained)
    os.makedirs(fn_args.model_run_dir, exist_ok=True)
    for file in _KEPT:
        if (folder / file).exists():
            shutil.copy(folder / file, fn_args.model_run_dir)
    shutil.rmtree(folder)


def _train(
    phase: types.ModuleType, fn_args: FnArgs, folder: pathlib.Path, cluster: Cluster
) -> Trained:
    if cluster.kubernetes is not None:
        _hand_over(phase.NAME, fn_args, folder, cluster)
    # Thread pools are set before TensorFlow starts, which it has in this process.
    if cluster.placement == "single" and cluster.threads == Threads():
        return _train_here(phase, fn_args, folder, cluster)
    return _train_in_cluster(phase.NAME, fn_args, folder, cluster)


def _train_here(
    phase: types.ModuleType, fn_args: FnArgs, folder: pathlib.Path, cluster: Cluster
) -> Trained:
    try:
        trained = train(lambda: phase.program(fn_args), fn_args, folder, cluster, None)
    except Preempted as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    assert trained is not None  # the only trainer is the chief
    return trained


def _trained(folder: pathlib.Path) -> Trained | None:
    """What a chief left that came to the end. The last step's or none: an older model must not
    take its place."""
    log = folder / TRAINING_EVENTS
    events = read_events(log) if log.exists() else []
    ends = [event["step"] for event in events if event["event"] == "trained"]
    newest = Checkpoints(folder / CHECKPOINTS, folder.name).latest() if ends else None
    return Trained(newest, folder) if newest and newest.step == ends[-1] else None


def _write_task(name: str, fn_args: FnArgs, folder: pathlib.Path, cluster: Cluster) -> pathlib.Path:
    task = TrainingTask(phase=name, fn_args=fields_of(fn_args), cluster=cluster, folder=str(folder))
    path = folder / "task.json"
    path.write_text(task.model_dump_json(indent=1))
    return path


def _hand_over(name: str, fn_args: FnArgs, folder: pathlib.Path, cluster: Cluster) -> NoReturn:
    path = _write_task(name, fn_args, folder, cluster)
    manifest = folder / "tfjob.yaml"
    manifest.write_text(manifest_yaml(cluster, str(path)))
    raise OnKubernetes(
        f"{name}: Kubernetes is to train it: kubectl apply -f {manifest}\n"
        "Once that TFJob has succeeded, the same command again goes on."
    )


def _train_in_cluster(
    name: str, fn_args: FnArgs, folder: pathlib.Path, cluster: Cluster
) -> Trained:
    path = _write_task(name, fn_args, folder, cluster)
    chief = [sys.executable, "-m", "modules.training.task", f"--task={path}"]
    supervisor = Supervisor(cluster, folder, {"chief": chief}, tell=_tell)
    with supervisor, stopped_by_signals(supervisor):
        code = _wait(supervisor, folder / _HISTORY)
    if code:
        raise KeyboardInterrupt(f"{name}: stopped; the same command goes on from the checkpoint")
    trained = _trained(folder)
    if trained is None:
        raise FileNotFoundError(f"{folder}: the cluster ended without its last checkpoint")
    return trained


def _wait(supervisor: Supervisor, history: pathlib.Path) -> int:
    """Waits for the chief; what it recorded last is the progress to show."""
    while True:
        try:
            return supervisor.wait(_PROGRESS_SECONDS)
        except TimeoutError:
            text = history.read_text() if history.exists() else ""
            whole = text[: text.rfind("\n") + 1]  # the last line may be half written
            for line in whole.splitlines()[-1:]:
                record = json.loads(line)
                _PROGRESS.info(
                    "%s: step %d, loss %.4f", record["phase"], record["step"], record["loss"]
                )


def _tell(event: Event) -> None:
    who = f"{event['role']} {event['index']}" if "role" in event else "cluster"
    _LOG.info("%s: %s", who, event)


def _fingerprint(fn_args: FnArgs) -> str:
    """Changes with anything that a checkpoint of this training couldn't be restored into."""
    config = fn_args.custom_config
    paths = [*fn_args.train_files, *fn_args.eval_files, fn_args.transform_output]
    about = [config["spec"], config.get("code", ""), paths, fn_args.base_model]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def fields_of(fn_args: FnArgs) -> dict[str, Any]:
    """What a phase reads of a Trainer's arguments."""
    names = (
        "train_files",
        "eval_files",
        "transform_output",
        "base_model",
        "serving_model_dir",
        "model_run_dir",
        "custom_config",
    )
    return {name: getattr(fn_args, name) for name in names}
