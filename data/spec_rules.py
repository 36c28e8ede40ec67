"""The spec's rules across its sections: what no section can check by itself.

A rule is a function of a spec whose keys are good one by one. It raises `ValueError`: the place,
what is wrong there, and the fix. No rule relies on another one, so all that are broken are told.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from data.architectures import (
    CONTEXT_IN_H,
    FACTORIZED,
    LAYERED,
    NOT_PRETRAINED,
    OWN_PRETRAINING,
    TWO_DOMAINS,
    WITHOUT_HIDDEN,
)
from data.channels import INTERVAL, CategoryChannel, DenseChannel, IdChannel, table_setting

if TYPE_CHECKING:
    from data.spec import Spec

_TABLE_SETTINGS = (
    "kind",
    "dim",
    "rows",
    "top_k",
    "min_count",
    "dtype",
    "values",
    "compression",
    "dynamic",
)


def _channels_are_consistent(spec: Spec) -> None:
    seen: set[str] = set()
    reserved = {"sequence_length", "sequence_mask"}
    reserved |= {c.count_feature for c in spec.channels if getattr(c, "multi_valued", False)}
    for channel in spec.channels:
        if channel.feature in seen or channel.feature in reserved:
            raise ValueError(
                f"channels: {channel.scope} channel {channel.name!r} is "
                + ("declared twice" if channel.feature in seen else "a reserved name")
            )
        seen.add(channel.feature)
    if not spec.scope("sequence"):
        raise ValueError("channels: at least one needs scope 'sequence'")
    outcomes = {c.source_column for c in spec.channels if c.outcome}
    outcomes |= {t.label for t in spec.tasks if t.per == "impression"}
    outcomes |= {t.oracle for t in spec.tasks if t.oracle}
    for channel in spec.scope("candidate"):
        if channel.source_column in outcomes:
            raise ValueError(
                f"channels: candidate channel {channel.name!r} reads {channel.source_column!r},"
                " an outcome or a task's label: it isn't known when the model is asked"
            )
    oracles = {t.oracle for t in spec.tasks if t.oracle}
    for channel in spec.channels:
        if channel.source_column in oracles:
            raise ValueError(f"channels: {channel.name!r} reads an oracle column")
        if channel.mask_prediction and channel.scope != "sequence":
            raise ValueError(
                f"channels: {channel.name!r}: only sequence channels take mask_prediction"
            )
        if channel.source_column == INTERVAL and (
            channel.kind != "dense" or channel.scope == "context"
        ):
            raise ValueError(
                f"channels: {channel.name!r}: {INTERVAL} is a dense sequence or candidate column"
            )


def _tables_are_consistent(spec: Spec) -> None:
    for table, channels in spec.tables.items():
        for key in _TABLE_SETTINGS:
            given = {
                f"{c.scope} {c.name}": getattr(c, key)
                for c in channels
                if getattr(c, key, None) is not None
            }
            if len(set(given.values())) > 1:
                raise ValueError(
                    f"channels: table {table!r} is shared with different {key}: "
                    + ", ".join(f"{n}={v}" for n, v in given.items())
                )
        if channels[0].kind == "id":
            _check_id_table(table, channels, spec)


def _check_id_table(
    table: str, channels: tuple[CategoryChannel | IdChannel, ...], spec: Spec
) -> None:
    rows = table_setting(channels, "rows", None)
    compression = table_setting(channels, "compression", None)
    if table_setting(channels, "dynamic", None) is not None:
        for key in ("rows", "top_k", "min_count", "compression"):
            if table_setting(channels, key, None) is not None:
                raise ValueError(f"channels: id table {table!r} is dynamic: it takes no {key!r}")
    elif rows is None:
        raise ValueError(
            f"channels: id table {table!r} needs 'rows' (or 'dynamic') on one of its channels"
            + _only_one_has(table, channels, spec)
        )
    elif compression is not None and not compression.can_tell_apart(rows):
        raise ValueError(
            f"channels: id table {table!r}: compression.rows {compression.rows} can't tell"
            f" {rows} rows apart by quotient and remainder; 2·√rows can"
        )


def _only_one_has(table: str, channels: tuple[CategoryChannel | IdChannel, ...], spec: Spec) -> str:
    """A table that one channel alone names may be a misspelt one."""
    others = sorted(
        name
        for name, sharing in spec.tables.items()
        if name != table and sharing[0].kind == channels[0].kind
    )
    if len(channels) > 1 or channels[0].table is None or not others:
        return ""
    (channel,) = channels
    return (
        f"; only {channel.scope} channel {channel.name!r} has it, the other id tables are"
        f" {', '.join(others)}"
    )


def _tasks_are_consistent(spec: Spec) -> None:
    if not spec.tasks:
        raise ValueError("tasks: at least one is needed")
    names = [t.name for t in spec.tasks]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise ValueError(f"tasks: {name!r} is declared twice")
    for reserved in sorted({"user_id", "embedding", "target_count"} & set(names)):
        raise ValueError(f"tasks: {reserved!r} is a reserved name")
    context = {c.name for c in spec.scope("context")}
    for task in spec.tasks:
        if (task.type == "multiclass") != (task.classes is not None):
            raise ValueError(f"tasks: {task.name!r}: 'classes' goes with type multiclass")
        if task.positive is not None and task.type != "binary":
            raise ValueError(f"tasks: {task.name!r}: 'positive' goes with type binary")
        for key in ("min_auc", "min_gauc"):
            if getattr(task.thresholds, key) is not None and task.type != "binary":
                raise ValueError(f"tasks: {task.name!r}: '{key}' goes with type binary")
        if task.thresholds.min_gauc is not None and task.per == "user":
            raise ValueError(
                f"tasks: {task.name!r}: 'min_gauc' goes with tasks per impression: a user"
                " has one label of a task per user, which leaves nothing to rank"
            )
        if task.thresholds.min_gauc is not None and task.group_by is None:
            raise ValueError(
                f"tasks: {task.name!r}: 'min_gauc' needs groups to rank within; leave out"
                " 'group_by: null'"
            )
        unknown = set(task.exclude) - context
        if unknown:
            raise ValueError(f"tasks: {task.name!r} excludes {sorted(unknown)}, no context channel")
    if any(t.per == "impression" for t in spec.tasks) and not spec.scope("candidate"):
        raise ValueError("channels: tasks per impression need a candidate channel")


def _split_is_complete(spec: Spec) -> None:
    if spec.split.by == "time" and spec.split.at is None:
        raise ValueError("split: 'by: time' needs 'at'")
    if spec.split.by == "user" and spec.split.history == "frozen":
        raise ValueError("split: 'history: frozen' goes with 'by: time'")


def _history_labels_are_trained_on(spec: Spec) -> None:
    if not spec.source.history_labels:
        return
    if spec.source.format != "kuairand":
        raise ValueError(
            "source: 'history_labels' goes with 'format: kuairand': elsewhere an event is a target"
            " where it has a label"
        )
    if spec.split.by != "time":
        raise ValueError(
            "source: 'history_labels' goes with 'split: {by: time}': by user, they would be"
            " evaluated on too"
        )
    if spec.source.where is not None:
        raise ValueError(
            "source: 'history_labels' and 'where' don't go together: of an earlier exposure it"
            " isn't known where it was"
        )


def _windows_hold_more_than_a_target_sees(spec: Spec) -> None:
    if spec.sequence.window <= spec.sequence.max_length:
        raise ValueError("sequence: window must be larger than max_length")


def _tuning_is_possible(spec: Spec) -> None:
    finetune, model = spec.training.finetune, spec.model
    adapters = finetune.adapters
    if (finetune.tune == "adapters") != (adapters is not None):
        raise ValueError("training.finetune: 'tune: adapters' and 'adapters' go together")
    if finetune.tune not in ("all", "classifier") and model.architecture not in LAYERED:
        raise ValueError(
            f"training.finetune: 'tune: {finetune.tune}' needs an encoder in layers: one of"
            f" {', '.join(sorted(LAYERED))}, not {model.architecture}"
        )
    some_frozen = finetune.tune in ("classifier", "last_1", "last_2")
    if some_frozen and not spec.training.pretrain.epochs:
        raise ValueError(
            f"training.finetune: 'tune: {finetune.tune}' leaves frozen what nothing has"
            " trained: it needs 'training.pretrain.epochs'"
        )
    if finetune.tune == "last_2" and model.num_blocks < 2:
        raise ValueError("training.finetune: 'tune: last_2' needs 'model.num_blocks' of 2 or more")
    if adapters is None:
        return
    if adapters.insertion.endswith("_after") and model.architecture != "nextitnet":
        raise ValueError(
            f"training.finetune.adapters: 'insertion: {adapters.insertion}' goes with"
            f" nextitnet; {model.architecture} takes serial or parallel"
        )
    if adapters.bottleneck_dim >= model.hidden_dim:
        raise ValueError(
            f"training.finetune.adapters: bottleneck_dim {adapters.bottleneck_dim} is no"
            f" bottleneck: model.hidden_dim is {model.hidden_dim}"
        )


def _knowledge_is_of_candidates(spec: Spec) -> None:
    if spec.knowledge is None:
        return
    heads = spec.model.heads or spec.model.architecture
    if not spec.knowledge.path and heads in WITHOUT_HIDDEN:
        raise ValueError(
            f"knowledge: {heads} shows no hidden layer to extract; give a 'path' to plug"
            " vectors in, or take other heads"
        )
    if not spec.knowledge.path and not any(t.per == "impression" for t in spec.tasks):
        raise ValueError("knowledge: items are extracted from a task per impression")
    is_can = spec.model.architecture == "can"
    if not spec.knowledge.path and is_can and spec.sequence.targets == "expanded":
        raise ValueError("knowledge: can is extracted from under 'sequence.targets: causal' only")
    for key in ("item", "category"):
        name = getattr(spec.knowledge, key)
        if name is not None:
            _must_tell_targets_apart(spec, f"knowledge: {key}", name)


def _domain_is_of_candidates(spec: Spec) -> None:
    word = spec.model.architecture
    if spec.domain is None:
        if word in TWO_DOMAINS:
            raise ValueError(f"model: {word} has a network for each domain: it needs 'domain'")
        return
    _must_tell_targets_apart(spec, "domain: channel", spec.domain.channel)
    if not any(t.per == "impression" for t in spec.tasks):
        raise ValueError("domain: it is a target's, of a task per impression")
    if word in TWO_DOMAINS and spec.domain.train_on != "both":
        raise ValueError(f"domain: {word} learns from both domains: leave out 'train_on'")


def _must_tell_targets_apart(spec: Spec, key: str, name: str) -> None:
    single = {
        c.name
        for c in spec.scope("candidate")
        if not isinstance(c, DenseChannel) and not c.multi_valued
    }
    if name not in single:
        raise ValueError(
            f"{key} {name!r} isn't a single-valued id or category channel of scope"
            f" 'candidate'; those are {sorted(single)}"
        )


def _ranking_has_negatives(spec: Spec) -> None:
    ranking = [task for task in spec.tasks if task.loss != "pointwise"]
    for task in ranking:
        if task.type != "binary" or task.per != "impression":
            raise ValueError(
                f"tasks: {task.name!r}: 'loss: {task.loss}' ranks candidates: it goes with"
                " binary tasks per impression"
            )
    negatives = spec.training.finetune.negatives
    if bool(ranking) != (negatives is not None):
        raise ValueError(
            "training.finetune: 'negatives' and tasks of 'loss: bpr' or 'loss: softmax' go together"
        )
    if ranking and spec.training.finetune.weighting == "bilevel":
        raise ValueError(
            "training.finetune: 'weighting: bilevel' validates by labels 0 and 1, and tasks"
            f" that rank, as {ranking[0].name!r}, aren't trained by those"
        )
    if negatives is not None:
        _must_tell_targets_apart(spec, "training.finetune.negatives: item", negatives.item)
        candidate = {c.name for c in spec.scope("candidate")} - {negatives.item}
        if unknown := sorted(set(negatives.moment) - candidate):
            raise ValueError(
                f"training.finetune.negatives: moment {unknown}: no other channels of scope"
                f" 'candidate'; those are {sorted(candidate)}"
            )


def _layers_become_h(spec: Spec) -> None:
    if spec.model.pooling and spec.model.architecture not in LAYERED:
        raise ValueError(
            "model: 'pooling' is of an encoder in layers: one of"
            f" {', '.join(sorted(LAYERED))}, not {spec.model.architecture}"
        )


def _context_has_a_reader(spec: Spec) -> None:
    if spec.model.context == "heads" and spec.model.architecture in CONTEXT_IN_H:
        raise ValueError(
            f"model: 'context: heads' would keep context from {spec.model.architecture}, which"
            " reads it in H alone"
        )


def _tasks_can_be_added(spec: Spec) -> None:
    if not spec.model.added_tasks:
        return
    if spec.model.architecture not in LAYERED:
        raise ValueError(
            "model: 'added_tasks' read an encoder's layers: one of"
            f" {', '.join(sorted(LAYERED))}, not {spec.model.architecture}"
        )
    if spec.model.heads in FACTORIZED:
        raise ValueError(
            "model: 'added_tasks' read a candidate as one vector, and heads"
            f" {spec.model.heads} make one a channel"
        )
    if not any(t.per == "impression" for t in spec.tasks):
        raise ValueError(
            "model: 'added_tasks' read candidates as a task per impression has learned to, and"
            " there is none"
        )


def _pairs_can_be_ranked(spec: Spec) -> None:
    ranked = any(t.type == "binary" and t.per == "impression" for t in spec.tasks)
    if spec.training.finetune.pairwise_weight and not ranked:
        raise ValueError(
            "training.finetune: 'pairwise_weight' ranks by binary tasks per impression, and"
            " there are none"
        )


def _phases_are_possible(spec: Spec) -> None:
    pretrain, finetune = spec.training.pretrain, spec.training.finetune
    if not pretrain.epochs and not finetune.pretraining_weight:
        return
    if spec.model.architecture in NOT_PRETRAINED:
        raise ValueError(
            f"training: {spec.model.architecture} has no pre-training; skip the phase with"
            " 'training.pretrain.epochs: 0', and leave out 'finetune.pretraining_weight'"
        )
    read = spec.scope("sequence") + spec.encoder_context
    if spec.model.architecture == "mtssl" and len(read) < 2:
        raise ValueError(
            "training: mtssl contrasts two views of a user, which need two channels that the"
            f" encoder reads; there are {[channel.name for channel in read]}"
        )
    if finetune.pretraining_weight and finetune.user_share < 1.0:
        raise ValueError(
            "training.finetune: 'pretraining_weight' would pre-train on 'user_share' of the"
            " users only: give one of them"
        )
    if finetune.pretraining_weight and finetune.tune != "all":
        raise ValueError(
            "training.finetune: 'pretraining_weight' trains the whole encoder:"
            f" it needs 'tune: all', not {finetune.tune}"
        )
    if pretrain.objective == "next_event" and spec.sequence.targets != "causal":
        raise ValueError(
            "training.pretrain: 'objective: next_event' needs 'sequence.targets: causal': an"
            " encoder that sees later events has nothing to predict"
        )
    if pretrain.objective == "s3" and spec.sequence.targets != "expanded":
        raise ValueError(
            "training.pretrain: 'objective: s3' needs 'sequence.targets: expanded': it predicts"
            " from the events on both sides"
        )
    if pretrain.objective != "masked_channels" and spec.model.architecture in OWN_PRETRAINING:
        raise ValueError(
            f"training.pretrain: {spec.model.architecture} has a pre-training of its own: it"
            f" takes no 'objective: {pretrain.objective}'"
        )
    _s3_channels_are_there(spec)
    by_channels = spec.model.architecture != "mtssl" and pretrain.objective != "s3"
    if by_channels and not spec.mcp_channels:
        raise ValueError(
            "training: pre-training predicts channels, and no channel has"
            " 'mask_prediction: true'; mark the important sequence channels, or skip the"
            " phase with 'training.pretrain.epochs: 0'"
        )
    if pretrain.epochs and pretrain.table_optimizer != finetune.table_optimizer:
        raise ValueError(
            "training: large and dynamic tables go from pre-training to fine-tuning with their"
            " optimizer's state; give both phases one 'table_optimizer'"
        )


def _s3_channels_are_there(spec: Spec) -> None:
    s3 = spec.training.pretrain.s3
    if (spec.training.pretrain.objective == "s3") != (s3 is not None):
        raise ValueError("training.pretrain: 'objective: s3' and 's3' go together")
    if s3 is None:
        return
    found = [c for c in spec.scope("sequence") if not isinstance(c, DenseChannel)]
    items = {c.name for c in found if isinstance(c, IdChannel) and not c.multi_valued}
    attributes = {c.name for c in found} - {s3.item}
    if s3.item not in items:
        raise ValueError(
            f"training.pretrain.s3: item {s3.item!r} isn't a single-valued id channel of scope"
            f" 'sequence'; those are {sorted(items)}"
        )
    if unknown := set(s3.attributes) - attributes:
        raise ValueError(
            f"training.pretrain.s3: attributes {sorted(unknown)} aren't id or category channels"
            f" of scope 'sequence' beside the item; those are {sorted(attributes)}"
        )


_RULES = (
    _channels_are_consistent,
    _tables_are_consistent,
    _tasks_are_consistent,
    _split_is_complete,
    _history_labels_are_trained_on,
    _windows_hold_more_than_a_target_sees,
    _tuning_is_possible,
    _knowledge_is_of_candidates,
    _domain_is_of_candidates,
    _ranking_has_negatives,
    _layers_become_h,
    _context_has_a_reader,
    _tasks_can_be_added,
    _pairs_can_be_ranked,
    _phases_are_possible,
)


def check(spec: Spec) -> None:
    """Raises `ValueError`: a line of each rule that the spec breaks, of its first mistake."""
    broken = []
    for rule in _RULES:
        try:
            rule(spec)
        except ValueError as error:
            broken.append(str(error))
    if broken:
        raise ValueError("\n".join(broken))
