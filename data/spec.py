"""The spec: one YAML that says what the data is, what is learned and when a model is good enough.

Everything else is derived from it: the TFMD schema, the preprocessing function, the
model's inputs and heads, the evaluation config, the serving signatures and the typed
client. Nobody writes a channel's name twice.

This module is imported everywhere and imports nothing of ours but its own parts: strict sections,
channels, the architectures' words and the rules across sections. `load_spec` is the way in; it
raises `SpecError` with the path of every bad key.
"""

from __future__ import annotations

import collections
import datetime
import hashlib
import pathlib
from collections.abc import Collection
from typing import Annotated, Literal

import pydantic
import yaml

from data import spec_rules
from data.architectures import OWN_HEADS, Architecture, Heads
from data.channels import (
    INTERVAL,
    CategoryChannel,
    Channel,
    DenseChannel,
    IdChannel,
    Scope,
    table_setting,
)
from data.strict import Fraction, InvalidError, Name, Strict, validated


class SpecError(ValueError):
    """A spec that can't be used. The message names the file, the key's path and the fix."""


class Thresholds(Strict):
    """Blessing: absolute floors, and how much worse than the last blessed model is a loss."""

    min_auc: Fraction | None = None
    """Of binary tasks only."""
    min_gauc: Fraction | None = None
    """Of binary tasks per impression only."""
    max_loss_vs_blessed: Annotated[float, pydantic.Field(ge=0.0)] = 0.005


class Task(Strict):
    """One downstream task (eq. 3: a missing label sets the indicator to 0, never a negative)."""

    name: Name
    per: Literal["impression", "user"] = "impression"
    type: Literal["binary", "multiclass", "regression"] = "binary"
    label: str
    """Label column, of the event table (`per: impression`) or the user table (`per: user`)."""
    positive: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """binary: label values (as text) that count as 1; every other present value is 0."""
    classes: Annotated[tuple[str, ...], pydantic.Field(min_length=2)] | None = None
    """multiclass: the label's values, in the order of the logits."""
    exclude: tuple[Name, ...] = ()
    """Context channels that would give the label away (same fact under another name)."""
    loss: Literal["pointwise", "bpr", "softmax"] = "pointwise"
    """bpr, softmax: a target of label 1 is ranked above `training.finetune.negatives`, pair by pair
    (PeterRec eq. 8) or by a softmax over it and them; one of label 0 isn't trained on."""
    group_by: Literal["user_id"] | None = "user_id"
    """GAUC's groups; null reports none."""
    weight: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    """λ of eq. 9, unless `training.finetune.weighting` finds others."""
    oracle: str | None = None
    """Column with the label's true probability, where a simulator knows it (never an input)."""
    thresholds: Thresholds = Thresholds()

    @property
    def label_feature(self) -> str:
        return f"label_{self.name}"

    @property
    def oracle_feature(self) -> str:
        return f"oracle_{self.name}"


class Where(Strict):
    """One domain of many: a tab, an app, a kind of traffic (KEEP's sub-domain)."""

    column: str
    """Of the event table, as text."""
    values: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """The domain's; a missing one is none of them."""
    of: Literal["events", "targets"] = "events"
    """`events`: others are left out; `targets`: others are history, and no one's label."""


class Source(Strict):
    """Where events come from. `format` picks the reader in `data/sources`."""

    format: Literal["kuairand", "movielens", "tabular"]
    path: str = ""
    """Folder (kuairand, movielens) or glob of Parquet/CSV/JSONL files (tabular)."""
    users: str = ""
    """tabular: glob of the user table, one row a user; optional."""
    where: Where | None = None
    """The events or targets wanted; all unless given."""
    history_labels: bool = False
    """kuairand: earlier exposures, which have no times, are training targets too, of what is known
    of them, and not history alone. Without a file of them there are none."""
    max_dead_letter_fraction: Fraction = 0.01
    """More malformed rows than this and the run fails."""


class Sequence(Strict):
    """How a user's events become windows, and windows become encoder inputs (DESIGN §4.2)."""

    max_length: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    """Events a target sees: the newest `max_length` that are strictly earlier."""
    window: Annotated[int, pydantic.Field(ge=2)] = 512
    """Events one instance holds. Longer users are cut into windows overlapping by max_length."""
    targets: Literal["causal", "expanded"] = "causal"
    """`causal`: one pass, H at a target pools what it sees (`model.pooling`). `expanded`: each
    target's visible suffix is gathered and encoded bidirectionally, as in the papers."""


class Split(Strict):
    """train/eval. Per-user tasks are always split by user; impressions by user or by time."""

    by: Literal["user", "time"] = "user"
    eval_fraction: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] = 0.2
    """Fraction of users (by hash of the user id) whose per-user labels, and with `by: user`
    whose impressions, are evaluated on and never trained on."""
    at: datetime.datetime | None = None
    """`by: time`: targets at or after this moment (UTC unless it says otherwise) are eval."""

    history: Literal["streaming", "frozen"] = "streaming"
    """`by: time`: what an eval target sees. `streaming`: every strictly earlier event, as where
    events reach the server at once; `frozen`: those before `at` only, as where model and
    features are refreshed together by a batch run. Training targets always see all earlier."""

    @property
    def at_ms(self) -> int | None:
        if self.at is None:
            return None
        at = self.at if self.at.tzinfo else self.at.replace(tzinfo=datetime.timezone.utc)
        return int(at.timestamp() * 1000)


class Model(Strict):
    """Which model, and its sizes (DESIGN §4.4)."""

    architecture: Architecture = "supermoe"
    """What `modules/models/architectures.py` puts together."""
    heads: Heads | None = None
    """What stands between H and the tasks' logits; the architecture's own unless given."""
    context: Literal["encoder", "heads"] = "encoder"
    """Who reads the context channels that every task may see: the encoder, as its leading token,
    and the heads, or the heads alone, so that H says what a user did and no more."""
    hidden_dim: Annotated[int, pydantic.Field(ge=1)] = 64
    pooling: Literal["max", "mean", "max_mean"] | None = None
    """How an encoder's layers become H: of each dimension the maximum over the events (SuperMoE
    eq. 8), their mean, or the one for half of H and the other for the rest; the architecture's own
    unless given."""
    num_blocks: Annotated[int, pydantic.Field(ge=1)] = 2
    num_heads: Annotated[int, pydantic.Field(ge=1)] = 4
    num_experts: Annotated[int, pydantic.Field(ge=1)] = 4
    """Experts of every MoE-FFN (eq. 6)."""
    num_attention_experts: Annotated[int, pydantic.Field(ge=1)] = 2
    """Experts of the q, k and v projections (eq. 5)."""
    ffn_dim: Annotated[int, pydantic.Field(ge=1)] = 128
    dilations: Annotated[
        tuple[Annotated[int, pydantic.Field(ge=1)], ...], pydantic.Field(min_length=1)
    ] = (1, 2, 4, 8)
    """nextitnet: of its convolutions, two a block, repeated from the first (PeterRec §4.1)."""
    capacity_factor: Annotated[float, pydantic.Field(gt=0.0)] | None = None
    """Tokens an expert takes, as a multiple of its even share; null drops none."""
    load_balance_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.01
    router_z_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.001
    tower_dims: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = (64,)
    """Hidden layers of a tower over [H, candidate, H·candidate, context]; () is eq. 8's linear."""
    shared_experts: Annotated[int, pydantic.Field(ge=0)] = 4
    """mmoe, ple: experts that all tasks mix, each a layer of `hidden_dim`."""
    task_experts: Annotated[int, pydantic.Field(ge=1)] = 2
    """ple: experts of each task's own, at every level."""
    extraction_levels: Annotated[int, pydantic.Field(ge=1)] = 2
    """ple: how often experts are mixed and mixtures go to the next experts."""
    cross_lasso: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """conet: weight of the L1 norm of the connections between its networks (its eq. 9)."""
    reversal_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.3
    """darec: λ of the gradient that the domain classifier sends back, reversed."""
    dropout: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.1
    mixed_precision: bool = False
    added_tasks: bool = False
    """The pushed model takes tasks that are trained on it later (docs/tuning.md)."""
    full_softmax_rows: Annotated[int, pydantic.Field(ge=0)] = 20_000
    """Tables of at most so many rows are weights of the model, predicted by a full softmax;
    larger ones are sharded, looked up by distinct ids and predicted by a sampled softmax."""

    @pydantic.model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _halves_of_h(self) -> Model:
        if self.pooling == "max_mean" and self.hidden_dim < 2:
            raise ValueError("pooling max_mean halves H: 'hidden_dim' must be at least 2")
        return self

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Model:
        if self.heads and self.architecture in OWN_HEADS:
            raise ValueError(f"{self.architecture} is its heads: it takes no 'heads'")
        if (self.heads or self.architecture) == "mmoe" and not self.shared_experts:
            raise ValueError("mmoe mixes shared experts: 'shared_experts' must be at least 1")
        return self


class Phase(Strict):
    """One training phase. `epochs: 0` skips it."""

    epochs: Annotated[int, pydantic.Field(ge=0)] = 1
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 64
    """Instances (user windows) a step."""
    learning_rate: Annotated[float, pydantic.Field(gt=0.0)] = 1e-3
    """AdamW, of the dense part; warmed up, then decayed to a tenth by a cosine."""
    table_learning_rate: Annotated[float, pydantic.Field(gt=0.0)] = 0.05
    """Of the tables' optimizer."""
    table_optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    """Row-wise: one float of state a row instead of one an element."""
    weight_decay: Annotated[float, pydantic.Field(ge=0.0)] = 0.01


class ItemAttributes(Strict):
    """Sequence channels that S3-Rec's objectives are about (Zhou et al. 2020, §4.3)."""

    item: Name
    """An id channel."""
    attributes: Annotated[tuple[Name, ...], pydantic.Field(min_length=1)]
    """Category or id channels that describe the item; may be multi-valued."""


class Pretraining(Phase):
    objective: Literal["masked_channels", "denoising_autoencoder", "next_event", "s3"] = (
        "masked_channels"
    )
    """What is predicted: of the MCP channels masked values (SuperMoE eq. 1-2, PeterRec eq. 2),
    beside them from H alone what values the window holds (AETN), or the values of each event from
    the events before it (PeterRec eq. 1); or, of the channels that `s3` names, S3-Rec's four."""
    s3: ItemAttributes | None = None
    """Goes with `objective: s3`."""
    mask_rate: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] = 0.2
    """Probability that a value of an MCP channel is masked (and predicted)."""
    whole_event_share: Fraction = 0.3
    """Of the masked values, the share whose event loses all its MCP channels at once."""


class Adapters(Strict):
    """Model patches in the encoder's blocks (PeterRec §3.3, eq. 10)."""

    bottleneck_dim: Annotated[int, pydantic.Field(ge=1)]
    """Of each patch; the paper's is hidden_dim / 8."""
    insertion: Literal["serial", "serial_after", "parallel", "parallel_after"] = "parallel"
    """PeterRec's Figure 3 (b), (c), (d), (e): behind a layer or beside it; `_after` its
    normalisation and activation, which only nextitnet's layers have behind them. Beside it, as in
    the paper's Table 3, was the better in AUC for SuperMoE (docs/results, PeterRec)."""


class Negatives(Strict):
    """Sampled items, for tasks whose `loss` ranks: uniformly, of those that a batch's targets
    offer."""

    item: Name
    """Candidate channel that identifies an item."""
    count: Annotated[int, pydantic.Field(ge=1)] = 4
    """Drawn beside each target of label 1."""
    moment: tuple[Name, ...] = ()
    """Candidate channels that tell of the moment, not the item (a page, an hour): a negative has
    its target's. Those that read `$interval` are such channels anyway."""


class Finetuning(Phase):
    tune: Literal["all", "adapters", "classifier", "last_1", "last_2"] = "all"
    """What is trained beside the tasks' heads, the rest frozen (PeterRec §4.1): FineAll, PeterRec,
    FineCLS, and FineLast of the encoder's last one or two layers."""
    adapters: Adapters | None = None
    """Goes with `tune: adapters`."""
    user_share: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    """Of the training users, chosen by a hash of the id, so that a smaller share is part of a
    larger one (PeterRec Figure 6). Pre-training and evaluation have all of theirs."""
    pairwise_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """α of KEEP's eq. 3: weight of ranking a user's targets by pairs, beside each task's own loss;
    of binary tasks per impression."""
    negatives: Negatives | None = None
    """Goes with tasks of `loss: bpr` or `softmax`."""
    pretraining_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """Of the pre-training's loss of the same batches, added to the tasks': both at once instead of
    one after the other (PeterRec §4.1, MTL)."""
    weighting: Literal["static", "uncertainty", "gradnorm", "pcgrad", "bilevel"] = "static"
    """How the tasks' λ (eq. 9) are found (`modules/objectives/weighting`): they are a multiple of
    the task's `weight`, or, of gradnorm, start there; of bilevel, start there over the norm of the
    task's gradient. bilevel validates on an eighth of the users, and trains on no label of theirs
    until the last third of the epochs (never with fewer than three): with few users λ have little
    to go by."""
    weighting_rate: Annotated[float, pydantic.Field(gt=0.0)] | None = None
    """uncertainty, gradnorm, bilevel: how many times as fast log λ learns as the weights do;
    unless given 1, of bilevel 3."""

    @pydantic.model_validator(mode="after")
    def _rates_go_with_learned_weights(self) -> Finetuning:
        if self.weighting_rate is not None and self.weighting in ("static", "pcgrad"):
            raise ValueError(
                f"weighting {self.weighting} learns no λ: it takes no 'weighting_rate'"
            )
        return self


class Training(Strict):
    seed: int = 0
    pretrain: Pretraining = Pretraining()
    finetune: Finetuning = Finetuning()


class Validation(Strict):
    """How far data may move from the last accepted run before training stops."""

    max_category_drift: Fraction = 0.3
    """L∞ between the value distributions of a category channel (missing is a value)."""
    max_dense_drift: Fraction = 0.3
    """Jensen–Shannon divergence of a dense channel."""
    max_missing_drift: Annotated[float, pydantic.Field(gt=0.0)] = 0.3
    """Relative change of a channel's share of missing values; under one point it's noise."""


class Evaluation(Strict):
    activity_edges: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = (50, 150, 300)
    """Slices by the user's number of events (KEEP Table 7): [0, 50), [50, 150), …, 300+."""

    @pydantic.model_validator(mode="after")
    def _edges_rise(self) -> Evaluation:
        if list(self.activity_edges) != sorted(set(self.activity_edges)):
            raise ValueError(f"activity_edges {list(self.activity_edges)} don't rise")
        return self


class Knowledge(Strict):
    """KEEP (Zhang et al. 2022): what extracted vectors are about, and which ones a model reads."""

    item: Name
    """Candidate channel that identifies the item."""
    category: Name | None = None
    """Candidate channel of the item's category."""
    path: str = ""
    """Folder of exported vectors that are plugged into the model; '': none are."""


class Domain(Strict):
    """A sub-domain among the targets per impression; the super-domain is all of them, the
    sub-domain's too (KEEP §1).

    Evaluation counts the sub-domain's targets only, whatever was trained on.
    """

    channel: Name
    """Candidate channel that tells them apart."""
    values: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """The sub-domain's, as text; a missing one is none of them."""
    train_on: Literal["both", "domain"] = "both"
    """Whose labels teach, all targets' or the sub-domain's; the history holds all events."""


class Spec(Strict):
    name: Name
    source: Source
    user: str = "user_id"
    """Column of the user's id, in the event and the user table."""
    time: str = "time_ms"
    """Column of the event's time, integer milliseconds. May be missing; such events have an
    order and come before the user's events with a time."""
    sequence: Sequence = Sequence()
    channels: tuple[Channel, ...]
    tasks: tuple[Task, ...]
    split: Split = Split()
    validation: Validation = Validation()
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    knowledge: Knowledge | None = None
    domain: Domain | None = None

    def scope(self, scope: Scope) -> tuple[Channel, ...]:
        return tuple(c for c in self.channels if c.scope == scope)

    @property
    def mcp_channels(self) -> tuple[Channel, ...]:
        return tuple(c for c in self.channels if c.mask_prediction)

    @property
    def tables(self) -> dict[str, tuple[CategoryChannel | IdChannel, ...]]:
        """Table name -> its channels; the first one carries the table's settings."""
        tables: dict[str, list] = collections.defaultdict(list)
        for channel in self.channels:
            if not isinstance(channel, DenseChannel):
                tables[channel.table_name].append(channel)
        return {k: tuple(v) for k, v in tables.items()}

    def is_large(self, table: str, num_rows: int) -> bool:
        """Whether a table's rows are looked up by a batch's distinct ids, and trained so, instead
        of being a weight of the model: dynamic ones always, compressed ones never, others by how
        many rows they have."""
        channels = self.tables[table]
        if table_setting(channels, "dynamic", None) is not None:
            return True
        if table_setting(channels, "compression", None) is not None:
            return False
        return num_rows > self.model.full_softmax_rows

    @property
    def dynamic_tables(self) -> tuple[str, ...]:
        return tuple(
            table
            for table, channels in self.tables.items()
            if table_setting(channels, "dynamic", None) is not None
        )

    def task(self, name: str) -> Task:
        return next(t for t in self.tasks if t.name == name)

    def with_tasks(self, *names: str) -> Spec:
        """The same without other tasks. Context that only they may not see is for
        the encoder then, too.

        Raises:
          SpecError: no such task; or what is left makes no sense.
        """
        if unknown := set(names) - {t.name for t in self.tasks}:
            known = ", ".join(t.name for t in self.tasks)
            raise SpecError(f"tasks: no {', '.join(sorted(unknown))}; there are {known}")
        raw = self.model_dump(mode="json")
        raw["tasks"] = [task for task in raw["tasks"] if task["name"] in names]
        return parse_spec(raw)

    def context_for(self, task: Task) -> tuple[Channel, ...]:
        """Context channels the task's tower may see: never the column that is its label."""
        return tuple(
            c
            for c in self.scope("context")
            if c.source_column != task.label and c.name not in task.exclude
        )

    @property
    def encoder_context(self) -> tuple[Channel, ...]:
        """Context channels that the shared encoder reads: of those every task may see, all or, by
        `model.context`, none."""
        if self.model.context == "heads":
            return ()
        allowed = [{c.name for c in self.context_for(t)} for t in self.tasks]
        return tuple(c for c in self.scope("context") if all(c.name in a for a in allowed))

    def moment_channels(self, names: Collection[str]) -> tuple[Channel, ...]:
        """Candidate channels that tell of the moment, not the item: the named ones, and those that
        read `$interval`."""
        return tuple(
            c for c in self.scope("candidate") if c.name in names or c.source_column == INTERVAL
        )

    def fingerprint(self) -> str:
        """Changes when anything in the spec does; part of every node's cache key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @pydantic.model_validator(mode="after")
    def _is_possible(self) -> Spec:
        spec_rules.check(self)
        return self


def load_spec(path: str | pathlib.Path) -> Spec:
    """Reads and checks a spec file.

    Args:
      path: a YAML file, or the bare name of one in `data/specs`.

    Raises:
      SpecError: the file is missing, isn't YAML, or has a bad key (all are listed).
    """
    path = pathlib.Path(path)
    bundled = pathlib.Path(__file__).parent / "specs" / f"{path}.yaml"
    if not path.suffix and bundled.exists():
        path = bundled
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in bundled.parent.glob("*.yaml")))
        raise SpecError(f"{path}: no such spec. Give a YAML file or one of: {names}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML: {error}") from None
    return parse_spec(raw, where=str(path))


def parse_spec(raw: object, where: str = "spec") -> Spec:
    """Checks an already parsed spec. Raises `SpecError`; `where` opens its message."""
    try:
        return validated(Spec, raw)
    except InvalidError as error:
        raise SpecError(f"{where}: not a valid spec:\n{error}") from None
