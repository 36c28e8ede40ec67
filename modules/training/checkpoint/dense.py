"""Variables of a program's objects: dense weights, small tables, optimizers with their slots.

They are copied to host memory first and written from there, so that training goes on meanwhile
(`tf.train.Checkpoint.write` reads the variables while it writes). A variable's name is its path
in the graph of objects, as in an object-based checkpoint: `model/encoder/blocks/0/kernel`. The
same objects have the same paths under every distribution strategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from modules.training.checkpoint import bundle
from modules.training.checkpoint.error import CheckpointError

NAME = "dense"
"""The bundle's prefix below a checkpoint's folder."""


def dense_snapshot(
    objects: Mapping[str, tf.Module], without: Iterable[tf.Variable] = ()
) -> dict[str, np.ndarray]:
    """Copies every variable of `objects`, each with its own dtype and shape.

    Call it between steps. Under `multi_worker_mirrored` call it on every worker: variables
    that replicas aggregate on reading (batch normalisation's) are reduced over all of them.

    Args:
      objects: modules, models, layers, optimizers (built), by name. A variable that several
        reach gets its name from the first: put the model before what trains it.
      without: variables that are saved elsewhere (shards of large tables).
    """
    return {name: np.asarray(v.numpy()) for name, v in _variables(objects, without)}


def write(prefix: str, values: Mapping[str, np.ndarray]) -> None:
    """Writes a snapshot to an absolute prefix.

    Raises:
      CheckpointError: it can't be written.
    """
    bundle.write(prefix, values)


def restore(
    prefix: str, objects: Mapping[str, tf.Module], without: Iterable[tf.Variable] = ()
) -> None:
    """Assigns every variable of `objects` what was saved, under any placement.

    All is checked before anything is assigned.

    Args:
      objects, without: as for `dense_snapshot`; some of the saved objects will do.

    Raises:
      CheckpointError: a variable of theirs was not saved or has another shape or dtype, or a
        saved one of theirs doesn't exist here (an optimizer that isn't built); names the first.
        Or a DamagedError: the bundle can't be read.
    """
    variables = dict(_variables(objects, without))
    reader = bundle.Reader(prefix)
    for name, variable in variables.items():
        if name not in reader.shapes:
            raise CheckpointError(f"{prefix}: {name} was not saved")
        saved = reader.dtypes[name], tuple(reader.shapes[name])
        here = tf.as_dtype(variable.dtype), tuple(variable.shape)
        if saved != here:
            raise CheckpointError(
                f"{prefix}: {name} was saved as {_describe(*saved)}, but is {_describe(*here)}"
            )
    for name in sorted(reader.shapes):
        if name.partition("/")[0] in objects and name not in variables:
            raise CheckpointError(f"{prefix}: {name} was saved, but doesn't exist (not built yet?)")
    for name, variable in variables.items():
        variable.assign(reader[name])


def _variables(
    objects: Mapping[str, tf.Module], without: Iterable[tf.Variable]
) -> Iterator[tuple[str, tf.Variable]]:
    """(name, variable): breadth first, so that each is named by its shortest path."""
    seen = {id(variable) for variable in without}
    for name, root in objects.items():
        children = tf.train.TrackableView(root).children
        level = [(name, root)]
        while level:
            deeper = []
            for path, parent in level:
                if id(parent) in seen:
                    continue
                seen.add(id(parent))
                if isinstance(parent, tf.Variable):
                    yield path, parent
                else:
                    deeper += [(f"{path}/{n}", child) for n, child in _sorted(children(parent))]
            level = deeper


def _sorted(children: Mapping[str, tf.Module]) -> list[tuple[str, tf.Module]]:
    # `_variables` of an optimizer last: `_momentums/3` says more than `_variables/7`.
    return sorted(children.items(), key=lambda child: (child[0] == "_variables", child[0]))


def _describe(dtype: tf.DType, shape: tuple[int, ...]) -> str:
    return f"{dtype.name} {list(shape)}"
