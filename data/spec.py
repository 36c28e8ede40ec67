"""The spec: one YAML that says what the data is, what is learned and when a model is good enough.

Everything else is derived from it: the TFMD schema, the preprocessing function, the
model's inputs and heads, the evaluation config, the serving signatures and the typed
client. Nobody writes a channel's name twice.

This module is imported everywhere and imports nothing of ours. `load_spec` is the way in;
it raises `SpecError` with the path of every bad key.
"""

from __future__ import annotations

import collections
import datetime
import hashlib
import pathlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import pydantic
import yaml

Scope = Literal["sequence", "candidate", "context"]
Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]

INTERVAL = "$interval"
"""Derived column, seconds (float): since the user's previous event (`sequence` scope) or
since the newest *visible* event (`candidate` scope). Missing where either time is."""


class SpecError(ValueError):
    """A spec that can't be used. The message names the file, the key's path and the fix."""


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Channel(_Strict):
    name: Name
    scope: Scope
    column: str = ""
    """Column of the event (or user) table; the channel's name unless given."""
    outcome: bool = False
    """Known only after the event (a click, a watch time): never a candidate channel."""
    mask_prediction: bool = False
    """Is a target of masked channel prediction (SuperMoE §3.1)."""
    max_missing: Fraction = 1.0
    """Largest fraction of missing values before the run stops with an anomaly."""

    @property
    def source_column(self) -> str:
        return self.column or self.name

    @property
    def feature(self) -> str:
        """The channel's name in an instance, in Transform's output and in a request."""
        return f"{self.scope}_{self.name}"

    @property
    def count_feature(self) -> str:
        """Multi-valued channels: how many of the flat values belong to each event/target."""
        return f"{self.feature}_count"


class _TableChannel(_Channel):
    multi_valued: bool = False
    table: Name | None = None
    """Embedding table; channels that name the same one share it. Own table unless given."""
    dim: Annotated[int, pydantic.Field(ge=1, le=4096)] | None = None

    @property
    def table_name(self) -> str:
        return self.table or self.name


class CategoryChannel(_TableChannel):
    """A small vocabulary of strings, learned by Transform or closed by `values`. Missing: ''."""

    kind: Literal["category"]
    values: tuple[str, ...] | None = None
    """Closed vocabulary: any other value is an anomaly."""
    top_k: Annotated[int, pydantic.Field(ge=1)] | None = None
    min_count: Annotated[int, pydantic.Field(ge=1)] | None = None


class Compression(_Strict):
    """An id table that must shrink: the hashed ids are composed from fewer stored rows."""

    method: Literal["multi_hash", "quotient_remainder"]
    """Sum of the rows of several hashes, or product of a remainder's and a quotient's row."""
    rows: Annotated[int, pydantic.Field(ge=2)]
    """Stored rows of all ids outside `top_k`; the channel's own `rows` says how many hash
    buckets are told apart, which costs nothing and may be huge."""
    hashes: Annotated[int, pydantic.Field(ge=2, le=8)] | None = None
    """multi_hash only; 2 unless given."""

    @property
    def num_hashes(self) -> int:
        return self.hashes or 2

    def can_tell_apart(self, buckets: int) -> bool:
        """Whether no two buckets need to have the same row."""
        return self.method == "multi_hash" or self.rows**2 >= 4 * buckets

    @pydantic.model_validator(mode="after")
    def _hashes_go_with_multi_hash(self) -> Compression:
        if self.hashes and self.method != "multi_hash":
            raise ValueError("'hashes' goes with method multi_hash")
        return self


class Dynamic(_Strict):
    """An id table without a vocabulary: ids get a row when they prove frequent, and lose it when
    they stop coming."""

    capacity: Annotated[int, pydantic.Field(ge=8, multiple_of=8)]
    """Ids that have a row of their own at any time."""
    tail_rows: Annotated[int, pydantic.Field(ge=1)]
    """Hashed rows that all other ids share."""
    admit_after: Annotated[int, pydantic.Field(ge=1, le=255)] = 2
    """Batches an id must lately have been in to get a row."""
    evict_after: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Steps without the id until its row is free for another; null: never."""


class IdChannel(_TableChannel):
    """Many ids. Frequent ones (`top_k`) get private rows, the rest share `rows` hashed ones;
    or, with `dynamic`, those that come often at the time do.

    int ids are non-negative; missing is -1. string ids: missing is ''.
    """

    kind: Literal["id"]
    dtype: Literal["int", "string"] | None = None
    rows: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Hash buckets for ids outside `top_k`."""
    top_k: Annotated[int, pydantic.Field(ge=0)] | None = None
    min_count: Annotated[int, pydantic.Field(ge=1)] | None = None
    """An id seen fewer times in training data is hashed even if within `top_k`."""
    compression: Compression | None = None
    dynamic: Dynamic | None = None


class DenseChannel(_Channel):
    """A number. Missing is NaN, all the way into the model, which learns from the absence."""

    kind: Literal["dense"]
    normalize: Literal["none", "z_score", "log1p", "bucketize"] = "z_score"
    """`log1p`: sign(x)·log(1+|x|), then z-score; `bucketize`: quantile rank in [0, 1]."""
    buckets: Annotated[int, pydantic.Field(ge=2, le=1024)] = 32


Channel = Annotated[
    CategoryChannel | IdChannel | DenseChannel, pydantic.Field(discriminator="kind")
]


class Thresholds(_Strict):
    """Blessing: absolute floors, and how much worse than the last blessed model is a loss."""

    min_auc: Fraction | None = None
    """Of binary tasks only."""
    min_gauc: Fraction | None = None
    """Of binary tasks per impression only."""
    max_loss_vs_blessed: Annotated[float, pydantic.Field(ge=0.0)] = 0.005


class Task(_Strict):
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


class Where(_Strict):
    """One domain of many: a tab, an app, a kind of traffic (KEEP's sub-domain)."""

    column: str
    """Of the event table, as text."""
    values: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """The domain's; a missing one is none of them."""
    of: Literal["events", "targets"] = "events"
    """`events`: others are left out; `targets`: others are history, and no one's label."""


class Source(_Strict):
    """Where events come from. `format` picks the reader in `data/sources`."""

    format: Literal["kuairand", "movielens", "tabular"]
    path: str = ""
    """Folder (kuairand, movielens) or glob of Parquet/CSV/JSONL files (tabular)."""
    users: str = ""
    """tabular: glob of the user table, one row a user; optional."""
    where: Where | None = None
    """The events or targets wanted; all unless given."""
    max_dead_letter_fraction: Fraction = 0.01
    """More malformed rows than this and the run fails."""


class Sequence(_Strict):
    """How a user's events become windows, and windows become encoder inputs (DESIGN §4.2)."""

    max_length: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    """Events a target sees: the newest `max_length` that are strictly earlier."""
    window: Annotated[int, pydantic.Field(ge=2)] = 512
    """Events one instance holds. Longer users are cut into windows overlapping by max_length."""
    targets: Literal["causal", "expanded"] = "causal"
    """`causal`: one pass, H at a target is the running max over what it sees. `expanded`: each
    target's visible suffix is gathered and encoded bidirectionally, as in the papers."""


class Split(_Strict):
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


class Model(_Strict):
    """Which model, and its sizes (DESIGN §4.4)."""

    architecture: Literal[
        "supermoe",
        "bert",
        "aetn",
        "nextitnet",
        "mtssl",
        "shared_bottom",
        "mmoe",
        "ple",
        "deepfm",
        "nfm",
        "din",
        "can",
        "two_tower",
        "conet",
        "darec",
        "keep_c",
    ] = "supermoe"
    """What `modules/models/architectures.py` puts together."""
    heads: Literal["towers", "shared_bottom", "mmoe", "ple", "deepfm", "nfm"] | None = None
    """What stands between H and the tasks' logits; the architecture's own unless given."""
    hidden_dim: Annotated[int, pydantic.Field(ge=1)] = 64
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
    def _heads_fit(self) -> Model:
        if self.heads and self.architecture in OWN_HEADS:
            raise ValueError(f"{self.architecture} is its heads: it takes no 'heads'")
        if (self.heads or self.architecture) == "mmoe" and not self.shared_experts:
            raise ValueError("mmoe mixes shared experts: 'shared_experts' must be at least 1")
        return self


class Phase(_Strict):
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


class ItemAttributes(_Strict):
    """Sequence channels that S3-Rec's objectives are about (Zhou et al. 2020, §4.3)."""

    item: Name
    """An id channel."""
    attributes: Annotated[tuple[Name, ...], pydantic.Field(min_length=1)]
    """Category or id channels that describe the item; may be multi-valued."""


class Pretraining(Phase):
    objective: Literal["masked_channels", "next_event", "s3"] = "masked_channels"
    """What is predicted: of the MCP channels masked values (SuperMoE eq. 1-2, PeterRec eq. 2), or
    those of each event from the events before it (PeterRec eq. 1); or, of the channels that `s3`
    names, S3-Rec's four."""
    s3: ItemAttributes | None = None
    """Goes with `objective: s3`."""
    mask_rate: Annotated[float, pydantic.Field(gt=0.0, lt=1.0)] = 0.2
    """Probability that a value of an MCP channel is masked (and predicted)."""
    whole_event_share: Fraction = 0.3
    """Of the masked values, the share whose event loses all its MCP channels at once."""


class Adapters(_Strict):
    """Model patches in the encoder's blocks (PeterRec §3.3, eq. 10)."""

    bottleneck_dim: Annotated[int, pydantic.Field(ge=1)]
    """Of each patch; the paper's is hidden_dim / 8."""
    insertion: Literal["serial", "serial_after", "parallel", "parallel_after"] = "serial"
    """PeterRec's Figure 3 (b), (c), (d), (e): behind a layer or beside it; `_after` its
    normalisation and activation, which only nextitnet's layers have behind them."""


class Negatives(_Strict):
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
    the task's `weight`, or, of gradnorm and bilevel, start there."""
    weighting_rate: Annotated[float, pydantic.Field(gt=0.0)] | None = None
    """uncertainty, gradnorm, bilevel: how many times as fast log λ learns as the weights do;
    1 unless given."""

    @pydantic.model_validator(mode="after")
    def _rates_go_with_learned_weights(self) -> Finetuning:
        if self.weighting_rate is not None and self.weighting in ("static", "pcgrad"):
            raise ValueError(
                f"weighting {self.weighting} learns no λ: it takes no 'weighting_rate'"
            )
        return self


class Training(_Strict):
    seed: int = 0
    pretrain: Pretraining = Pretraining()
    finetune: Finetuning = Finetuning()


class Validation(_Strict):
    """How far data may move from the last accepted run before training stops."""

    max_category_drift: Fraction = 0.3
    """L∞ between the value distributions of a category channel (missing is a value)."""
    max_dense_drift: Fraction = 0.3
    """Jensen–Shannon divergence of a dense channel."""
    max_missing_drift: Annotated[float, pydantic.Field(gt=0.0)] = 0.3
    """Relative change of a channel's share of missing values; under one point it's noise."""


class Evaluation(_Strict):
    activity_edges: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = (50, 150, 300)
    """Slices by the user's number of events (KEEP Table 7): [0, 50), [50, 150), …, 300+."""

    @pydantic.model_validator(mode="after")
    def _edges_rise(self) -> Evaluation:
        if list(self.activity_edges) != sorted(set(self.activity_edges)):
            raise ValueError(f"activity_edges {list(self.activity_edges)} don't rise")
        return self


class Knowledge(_Strict):
    """KEEP (Zhang et al. 2022): what extracted vectors are about, and which ones a model reads."""

    item: Name
    """Candidate channel that identifies the item."""
    category: Name | None = None
    """Candidate channel of the item's category."""
    path: str = ""
    """Folder of exported vectors that are plugged into the model; '': none are."""


class Domain(_Strict):
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


class Spec(_Strict):
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
        """The same without other tasks. Context that only they may not see enters the encoder.

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
        """Context channels that may enter the shared encoder: those every task may see."""
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
    def _channels_are_consistent(self) -> Spec:
        seen: set[str] = set()
        reserved = {"sequence_length", "sequence_mask"}
        reserved |= {c.count_feature for c in self.channels if getattr(c, "multi_valued", False)}
        for channel in self.channels:
            if channel.feature in seen or channel.feature in reserved:
                raise ValueError(
                    f"channels: {channel.scope} channel {channel.name!r} is "
                    + ("declared twice" if channel.feature in seen else "a reserved name")
                )
            seen.add(channel.feature)
        if not self.scope("sequence"):
            raise ValueError("channels: at least one needs scope 'sequence'")
        outcomes = {c.source_column for c in self.channels if c.outcome}
        outcomes |= {t.label for t in self.tasks if t.per == "impression"}
        outcomes |= {t.oracle for t in self.tasks if t.oracle}
        for channel in self.scope("candidate"):
            if channel.source_column in outcomes:
                raise ValueError(
                    f"channels: candidate channel {channel.name!r} reads {channel.source_column!r},"
                    " an outcome or a task's label: it isn't known when the model is asked"
                )
        oracles = {t.oracle for t in self.tasks if t.oracle}
        for channel in self.channels:
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
                    f"channels: {channel.name!r}: {INTERVAL} is a dense sequence or candidate"
                    " column"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _tables_are_consistent(self) -> Spec:
        for table, channels in self.tables.items():
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
                _check_id_table(table, channels)
        return self

    @pydantic.model_validator(mode="after")
    def _tasks_are_consistent(self) -> Spec:
        if not self.tasks:
            raise ValueError("tasks: at least one is needed")
        names = [t.name for t in self.tasks]
        for name, count in collections.Counter(names).items():
            if count > 1:
                raise ValueError(f"tasks: {name!r} is declared twice")
        for reserved in sorted({"user_id", "embedding", "target_count"} & set(names)):
            raise ValueError(f"tasks: {reserved!r} is a reserved name")
        context = {c.name for c in self.scope("context")}
        for task in self.tasks:
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
                raise ValueError(
                    f"tasks: {task.name!r} excludes {sorted(unknown)}, no context channel"
                )
        if any(t.per == "impression" for t in self.tasks) and not self.scope("candidate"):
            raise ValueError("channels: tasks per impression need a candidate channel")
        if self.split.by == "time" and self.split.at is None:
            raise ValueError("split: 'by: time' needs 'at'")
        if self.split.by == "user" and self.split.history == "frozen":
            raise ValueError("split: 'history: frozen' goes with 'by: time'")
        if self.sequence.window <= self.sequence.max_length:
            raise ValueError("sequence: window must be larger than max_length")
        return self

    @pydantic.model_validator(mode="after")
    def _tuning_is_possible(self) -> Spec:
        finetune, model = self.training.finetune, self.model
        adapters = finetune.adapters
        if (finetune.tune == "adapters") != (adapters is not None):
            raise ValueError("training.finetune: 'tune: adapters' and 'adapters' go together")
        if finetune.tune not in ("all", "classifier") and model.architecture not in LAYERED:
            raise ValueError(
                f"training.finetune: 'tune: {finetune.tune}' needs an encoder in layers: one of"
                f" {', '.join(sorted(LAYERED))}, not {model.architecture}"
            )
        some_frozen = finetune.tune in ("classifier", "last_1", "last_2")
        if some_frozen and not self.training.pretrain.epochs:
            raise ValueError(
                f"training.finetune: 'tune: {finetune.tune}' leaves frozen what nothing has"
                " trained: it needs 'training.pretrain.epochs'"
            )
        if finetune.tune == "last_2" and model.num_blocks < 2:
            raise ValueError(
                "training.finetune: 'tune: last_2' needs 'model.num_blocks' of 2 or more"
            )
        if adapters is None:
            return self
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
        return self

    @pydantic.model_validator(mode="after")
    def _knowledge_is_of_candidates(self) -> Spec:
        if self.knowledge is None:
            return self
        heads = self.model.heads or self.model.architecture
        if not self.knowledge.path and heads in WITHOUT_HIDDEN:
            raise ValueError(
                f"knowledge: {heads} shows no hidden layer to extract; give a 'path' to plug"
                " vectors in, or take other heads"
            )
        if not self.knowledge.path and not any(t.per == "impression" for t in self.tasks):
            raise ValueError("knowledge: items are extracted from a task per impression")
        if self.model.architecture == "can" and self.sequence.targets == "expanded":
            raise ValueError("knowledge: can takes 'sequence.targets: causal'")
        for key in ("item", "category"):
            name = getattr(self.knowledge, key)
            if name is not None:
                self._must_tell_targets_apart(f"knowledge: {key}", name)
        return self

    @pydantic.model_validator(mode="after")
    def _domain_is_of_candidates(self) -> Spec:
        word = self.model.architecture
        if self.domain is None:
            if word in TWO_DOMAINS:
                raise ValueError(f"model: {word} has a network for each domain: it needs 'domain'")
            return self
        self._must_tell_targets_apart("domain: channel", self.domain.channel)
        if not any(t.per == "impression" for t in self.tasks):
            raise ValueError("domain: it is a target's, of a task per impression")
        if word in TWO_DOMAINS and self.domain.train_on != "both":
            raise ValueError(f"domain: {word} learns from both domains: leave out 'train_on'")
        return self

    def _must_tell_targets_apart(self, key: str, name: str) -> None:
        single = {
            c.name
            for c in self.scope("candidate")
            if not isinstance(c, DenseChannel) and not c.multi_valued
        }
        if name not in single:
            raise ValueError(
                f"{key} {name!r} isn't a single-valued id or category channel of scope"
                f" 'candidate'; those are {sorted(single)}"
            )

    @pydantic.model_validator(mode="after")
    def _ranking_has_negatives(self) -> Spec:
        ranking = [task for task in self.tasks if task.loss != "pointwise"]
        for task in ranking:
            if task.type != "binary" or task.per != "impression":
                raise ValueError(
                    f"tasks: {task.name!r}: 'loss: {task.loss}' ranks candidates: it goes with"
                    " binary tasks per impression"
                )
        negatives = self.training.finetune.negatives
        if bool(ranking) != (negatives is not None):
            raise ValueError(
                "training.finetune: 'negatives' and tasks of 'loss: bpr' or 'loss: softmax' go"
                " together"
            )
        if ranking and self.training.finetune.weighting == "bilevel":
            raise ValueError(
                "training.finetune: 'weighting: bilevel' validates by labels 0 and 1, and tasks"
                f" that rank, as {ranking[0].name!r}, aren't trained by those"
            )
        if negatives is not None:
            self._must_tell_targets_apart("training.finetune.negatives: item", negatives.item)
            candidate = {c.name for c in self.scope("candidate")} - {negatives.item}
            if unknown := sorted(set(negatives.moment) - candidate):
                raise ValueError(
                    f"training.finetune.negatives: moment {unknown}: no other channels of scope"
                    f" 'candidate'; those are {sorted(candidate)}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _tasks_can_be_added(self) -> Spec:
        if not self.model.added_tasks:
            return self
        if self.model.architecture not in LAYERED:
            raise ValueError(
                "model: 'added_tasks' read an encoder's layers: one of"
                f" {', '.join(sorted(LAYERED))}, not {self.model.architecture}"
            )
        if self.model.heads in ("deepfm", "nfm"):
            raise ValueError(
                "model: 'added_tasks' read a candidate as one vector, and heads"
                f" {self.model.heads} make one a channel"
            )
        if not any(t.per == "impression" for t in self.tasks):
            raise ValueError(
                "model: 'added_tasks' read candidates as a task per impression has learned to, and"
                " there is none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _pairs_can_be_ranked(self) -> Spec:
        ranked = any(t.type == "binary" and t.per == "impression" for t in self.tasks)
        if self.training.finetune.pairwise_weight and not ranked:
            raise ValueError(
                "training.finetune: 'pairwise_weight' ranks by binary tasks per impression, and"
                " there are none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _phases_are_possible(self) -> Spec:
        pretrain, finetune = self.training.pretrain, self.training.finetune
        if not pretrain.epochs and not finetune.pretraining_weight:
            return self
        if self.model.architecture in NOT_PRETRAINED:
            raise ValueError(
                f"training: {self.model.architecture} has no pre-training; skip the phase with"
                " 'training.pretrain.epochs: 0', and leave out 'finetune.pretraining_weight'"
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
        if pretrain.objective == "next_event" and self.sequence.targets != "causal":
            raise ValueError(
                "training.pretrain: 'objective: next_event' needs 'sequence.targets: causal': an"
                " encoder that sees later events has nothing to predict"
            )
        if pretrain.objective == "s3" and self.sequence.targets != "expanded":
            raise ValueError(
                "training.pretrain: 'objective: s3' needs 'sequence.targets: expanded': it predicts"
                " from the events on both sides"
            )
        if pretrain.objective != "masked_channels" and self.model.architecture in OWN_PRETRAINING:
            raise ValueError(
                f"training.pretrain: {self.model.architecture} has a pre-training of its own: it"
                f" takes no 'objective: {pretrain.objective}'"
            )
        self._s3_channels_are_there()
        by_channels = self.model.architecture != "mtssl" and pretrain.objective != "s3"
        if by_channels and not self.mcp_channels:
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
        return self

    def _s3_channels_are_there(self) -> None:
        s3 = self.training.pretrain.s3
        if (self.training.pretrain.objective == "s3") != (s3 is not None):
            raise ValueError("training.pretrain: 'objective: s3' and 's3' go together")
        if s3 is None:
            return
        found = [c for c in self.scope("sequence") if not isinstance(c, DenseChannel)]
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


LAYERED = frozenset({"supermoe", "bert", "aetn", "nextitnet"})
"""Architectures whose encoder takes adapters and added tasks, and can be tuned by its last layers
only."""
TWO_DOMAINS = frozenset({"conet", "darec", "keep_c"})
"""Architectures with a network for each of `domain`'s two."""
OWN_HEADS = frozenset({"din", "can", "two_tower"}) | TWO_DOMAINS
"""Architectures that are their heads."""
NOT_PRETRAINED = frozenset({"shared_bottom", "mmoe", "ple", "deepfm", "nfm"}) | OWN_HEADS
"""Architectures that only fine-tune."""
WITHOUT_HIDDEN = frozenset({"shared_bottom", "mmoe", "ple", "deepfm", "nfm"}) | TWO_DOMAINS
"""Heads that show no layer before the logits to extract knowledge from."""
OWN_PRETRAINING = frozenset({"aetn", "mtssl"})
"""Architectures with a pre-training of their own, no `training.pretrain.objective`."""

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


def _check_id_table(table: str, channels: tuple[CategoryChannel | IdChannel, ...]) -> None:
    rows = table_setting(channels, "rows", None)
    compression = table_setting(channels, "compression", None)
    if table_setting(channels, "dynamic", None) is not None:
        for key in ("rows", "top_k", "min_count", "compression"):
            if table_setting(channels, key, None) is not None:
                raise ValueError(f"channels: id table {table!r} is dynamic: it takes no {key!r}")
    elif rows is None:
        raise ValueError(
            f"channels: id table {table!r} needs 'rows' (or 'dynamic') on one of its channels"
        )
    elif compression is not None and not compression.can_tell_apart(rows):
        raise ValueError(
            f"channels: id table {table!r}: compression.rows {compression.rows} can't tell"
            f" {rows} rows apart by quotient and remainder; 2·√rows can"
        )


def table_setting(channels: tuple[CategoryChannel | IdChannel, ...], key: str, default: Any) -> Any:
    """The value of `key` that any channel of a shared table gives, else `default`."""
    for channel in channels:
        value = getattr(channel, key, None)
        if value is not None:
            return value
    return default


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
        return Spec.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = []
        for e in error.errors():
            key = ".".join(str(part) for part in e["loc"])
            lines.append(f"  {key}: {_reason(e)}" if key else f"  {_reason(e)}")
        raise SpecError(f"{where}: not a valid spec:\n" + "\n".join(lines)) from None


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] not in ("value_error", "missing"):
        reason += f" (got {error['input']!r:.60})"
    return reason
