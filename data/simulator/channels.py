"""The spec of simulated data, for any number of channels and items."""

from __future__ import annotations

from typing import Any

from data.simulator import population, tables

_FLAGS = ["0", "1"]
_SEQUENCE: tuple[dict[str, Any], ...] = (
    {"name": "event", "kind": "category", "values": ["payment", "impression"], "dim": 4},
    {"name": "product", "kind": "id", "dim": 32, "mask_prediction": True},
    {
        "name": "category",
        "kind": "category",
        "dim": 16,
        "mask_prediction": True,
        "max_missing": 0.1,
    },
    {
        "name": "merchant",
        "kind": "id",
        "dtype": "string",
        "dim": 16,
        "mask_prediction": True,
        "max_missing": 0.2,
    },
    {
        "name": "price",
        "kind": "dense",
        "normalize": "log1p",
        "mask_prediction": True,
        "max_missing": 0.1,
    },
    {
        "name": "amount",
        "kind": "dense",
        "normalize": "log1p",
        "outcome": True,
        "mask_prediction": True,
        "max_missing": 0.6,
    },
    {
        "name": "payment_tool",
        "kind": "category",
        "values": list(population.PAYMENT_TOOLS),
        "dim": 8,
        "outcome": True,
        "mask_prediction": True,
        "max_missing": 0.6,
    },
    {
        "name": "location",
        "kind": "category",
        "dim": 8,
        "mask_prediction": True,
        "max_missing": 0.2,
    },
    {
        "name": "interval",
        "kind": "dense",
        "column": "$interval",
        "normalize": "log1p",
        "mask_prediction": True,
    },
    {
        "name": "spm",
        "kind": "id",
        "dtype": "string",
        "dim": 8,
        "rows": 64,
        "top_k": 1024,
        "mask_prediction": True,
        "max_missing": 0.2,
    },
    {
        "name": "hour",
        "kind": "category",
        "values": [str(h) for h in range(24)],
        "dim": 8,
        "mask_prediction": True,
    },
    {
        "name": "device",
        "kind": "category",
        "values": list(population.DEVICES),
        "dim": 4,
        "max_missing": 0.2,
    },
    {
        "name": "coupon",
        "kind": "category",
        "values": list(population.COUPONS),
        "dim": 4,
        "max_missing": 0.2,
    },
    {
        "name": "click",
        "kind": "category",
        "values": _FLAGS,
        "dim": 4,
        "outcome": True,
        "mask_prediction": True,
        "max_missing": 0.7,
    },
    {
        "name": "conversion",
        "kind": "category",
        "values": _FLAGS,
        "dim": 4,
        "outcome": True,
        "mask_prediction": True,
        "max_missing": 0.9,
    },
)
_CANDIDATE: tuple[dict[str, Any], ...] = (
    {"name": "product", "kind": "id", "table": "product"},
    {"name": "category", "kind": "category", "table": "category", "max_missing": 0.1},
    {
        "name": "merchant",
        "kind": "id",
        "dtype": "string",
        "table": "merchant",
        "max_missing": 0.2,
    },
    {"name": "price", "kind": "dense", "normalize": "log1p", "max_missing": 0.1},
    {"name": "spm", "kind": "id", "dtype": "string", "table": "spm", "max_missing": 0.2},
    {"name": "coupon", "kind": "category", "table": "coupon", "max_missing": 0.2},
    {"name": "hour", "kind": "category", "table": "hour"},
    {"name": "device", "kind": "category", "table": "device", "max_missing": 0.2},
    {"name": "location", "kind": "category", "table": "location", "max_missing": 0.2},
    {"name": "interval", "kind": "dense", "column": "$interval", "normalize": "log1p"},
)
_CONTEXT: tuple[dict[str, Any], ...] = (
    {
        "name": "age_band",
        "kind": "category",
        "values": list(population.AGE_BANDS),
        "dim": 4,
        "max_missing": 0.4,
    },
    {
        "name": "city_tier",
        "kind": "category",
        "values": ["1", "2", "3"],
        "dim": 4,
        "max_missing": 0.3,
    },
    {"name": "register_days", "kind": "dense", "normalize": "log1p"},
)
_EXTRA: dict[str, dict[str, Any]] = {
    "category": {"kind": "category", "top_k": 16, "dim": 4},
    "dense": {"kind": "dense"},
    "id": {"kind": "id", "dtype": "int", "rows": 256, "top_k": 0, "dim": 4},
}

CORE_CHANNELS = len(_SEQUENCE)
"""Sequence channels of the default spec."""
_NUM_ITEMS = 2_000
_PHASE = {"batch_size": 32, "learning_rate": 0.002, "table_learning_rate": 0.1}


def simulator_spec(num_channels: int = CORE_CHANNELS, num_items: int = _NUM_ITEMS) -> dict:
    """The spec (for `spec.parse_spec` or `yaml.safe_dump`) of `simulate` with these arguments.

    Raises:
      ValueError: `num_channels` is below `CORE_CHANNELS`, or `num_items` below 1.
    """
    if num_channels < CORE_CHANNELS or num_items < 1:
        raise ValueError(
            f"simulator_spec: num_channels is {num_channels}, must be at least {CORE_CHANNELS};"
            f" num_items is {num_items}, must be at least 1"
        )
    return {
        "name": "simulator",
        "source": {"format": "tabular", "path": "events-*.parquet", "users": "users.parquet"},
        "split": {"by": "user", "eval_fraction": 0.2},
        "sequence": {"max_length": 64, "window": 256},
        "channels": [
            *_scoped("sequence", (*_SEQUENCE, *_extra(num_channels - CORE_CHANNELS)), num_items),
            *_scoped("candidate", _CANDIDATE, num_items),
            *_scoped("context", _CONTEXT, num_items),
        ],
        "tasks": [
            _task("click", 0.72),
            _task("conversion", 0.73),
            _task("credit_pay", 0.72),
            _task("high_spender", 0.74, per="user"),
            _task("night_owl", 0.73, per="user"),
        ],
        "model": {
            "hidden_dim": 64,
            "num_blocks": 2,
            "num_heads": 4,
            "num_experts": 4,
            "num_attention_experts": 2,
            "pooling": "mean",
        },
        "training": {
            "pretrain": {"objective": "denoising_autoencoder", "epochs": 3, **_PHASE},
            "finetune": {"epochs": 6, **_PHASE, "weight_decay": 1.0, "weighting": "gradnorm"},
        },
        "evaluation": {"activity_edges": [30, 50, 80]},
    }


def _scoped(scope: str, channels: tuple[dict[str, Any], ...], num_items: int) -> list[dict]:
    """Channels of one scope; item and merchant tables grow with the number of items."""
    grown = {
        "product": {"rows": max(256, num_items // 8), "top_k": max(4096, num_items)},
        "merchant": {"rows": max(256, num_items // 80), "top_k": max(1024, num_items // 10)},
    }
    return [
        {**c, "scope": scope, **(grown.get(c["name"], {}) if scope == "sequence" else {})}
        for c in channels
    ]


def _extra(count: int) -> tuple[dict[str, Any], ...]:
    kinds = tables.EXTRA_KINDS
    return tuple(
        {"name": tables.extra_name(i), **_EXTRA[kinds[i % len(kinds)]], "max_missing": 0.3}
        for i in range(count)
    )


def _task(name: str, min_auc: float, per: str = "impression") -> dict:
    """`min_auc` is about 0.5 + 0.6 · (oracle AUC - 0.5)."""
    return {
        "name": name,
        "per": per,
        "label": f"{name}_label",
        "oracle": f"{name}_oracle",
        "group_by": "user_id" if per == "impression" else None,
        "thresholds": {"min_auc": min_auc},
    }
