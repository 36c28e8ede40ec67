"""Blocks as Arrow tables: the columns that `data/specs/simulator.yaml` reads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from data.simulator import population
from data.simulator.population import Events, Users, World

EXTRA_KINDS = ("category", "dense", "id")
"""Generic channels take these kinds in turn."""
EXTRA_MISSING = 0.1
_CITIES = tuple(f"city_{i:02d}" for i in range(population.NUM_CITIES))
_CATEGORIES = tuple(f"category_{i:02d}" for i in range(population.NUM_CATEGORIES))
_SPMS = tuple(
    f"a{page}.b{slot}"
    for page in range(population.NUM_PAGES)
    for slot in range(population.NUM_SLOTS)
)
_FLAGS = ("0", "1")
_HOURS = tuple(str(h) for h in range(24))
_TIERS = ("1", "2", "3")
_EXTRA_VALUES = tuple(f"v{i}" for i in range(8))
_EXTRA_IDS = 1000


def extra_name(index: int) -> str:
    """Name of generic channel `index` (from 0)."""
    return f"extra_{index + 1:03d}"


def block_tables(
    world: World, block: int, mean_events: float, num_extra: int
) -> tuple[pa.Table, pa.Table]:
    """Events (by user, then time) and users of one block of `population.BLOCK` users."""
    users, rng = population.draw_users(world, block, mean_events)
    events = population.draw_events(world, users, rng)
    columns = _event_columns(world, users, events, rng)
    columns |= _extra_columns(world, users, events, num_extra)
    return pa.table(columns), pa.table(_user_columns(users, rng))


def _event_columns(
    world: World, users: Users, events: Events, rng: np.random.Generator
) -> dict[str, pa.Array]:
    offer = ~events.payment
    paid = events.payment | events.conversion
    n = len(events.owner)

    def kept(channel: str) -> np.ndarray:
        return rng.random(n) >= population.MISSING[channel]

    hour = (events.time_ms // 3_600_000) % 24
    category = world.category[events.product]
    price = np.exp(3.5 + 0.8 * world.price[events.product])
    merchants = tuple(f"m{i}" for i in range(int(world.merchant.max()) + 1))
    labels = {
        "click": (events.click, events.p_click, offer & events.labelled[:, 0]),
        "conversion": (
            events.conversion,
            events.p_conversion,
            offer & events.click & events.labelled[:, 1],
        ),
        "credit_pay": (
            events.payment_tool >= 2,
            events.p_credit,
            events.payment & events.labelled[:, 2],
        ),
    }
    columns = {
        "user_id": pa.array(users.first + events.owner, pa.int64()),
        "time_ms": pa.array(events.time_ms, pa.int64()),
        "event": _strings(offer, ("payment", "impression")),
        "product": pa.array(events.product, pa.int64()),
        "category": _strings(category, _CATEGORIES, kept("category")),
        "merchant": _strings(world.merchant[events.product], merchants, kept("merchant")),
        "price": _floats(price),
        "amount": _floats(np.exp(events.log_amount), paid & kept("amount")),
        "payment_tool": _strings(
            events.payment_tool, population.PAYMENT_TOOLS, paid & kept("payment_tool")
        ),
        "location": _strings(events.location, _CITIES, kept("location")),
        "spm": _strings(events.page * population.NUM_SLOTS + events.slot, _SPMS, kept("spm")),
        "hour": _strings(hour, _HOURS),
        "device": _strings(events.device, population.DEVICES, kept("device")),
        "coupon": _strings(events.coupon, population.COUPONS, kept("coupon")),
        "click": _strings(events.click, _FLAGS, offer),
        "conversion": _strings(events.conversion, _FLAGS, offer & events.click),
    }
    for task, (label, probability, present) in labels.items():
        columns[f"{task}_label"] = _floats(label, present)
        columns[f"{task}_oracle"] = _floats(probability, present)
    return columns


def _extra_columns(world: World, users: Users, events: Events, count: int) -> dict[str, pa.Array]:
    if not count:
        return {}
    signals, rng = population.extra_signals(world, users, events, count)
    present = rng.random(signals.shape, dtype=np.float32) >= EXTRA_MISSING
    columns = {}
    for i in range(count):
        signal, kind = signals[:, i], EXTRA_KINDS[i % len(EXTRA_KINDS)]
        if kind == "dense":
            column = _floats(signal, present[:, i])
        elif kind == "category":
            code = np.clip(np.floor(2 * signal + 4), 0, len(_EXTRA_VALUES) - 1)
            column = _strings(code, _EXTRA_VALUES, present[:, i])
        else:
            code = np.clip(np.floor((signal / 8 + 0.5) * _EXTRA_IDS), 0, _EXTRA_IDS - 1)
            column = pa.array(code.astype(np.int64), mask=~present[:, i])
        columns[extra_name(i)] = column
    return columns


def _user_columns(users: Users, rng: np.random.Generator) -> dict[str, pa.Array]:
    n = population.BLOCK

    def kept(channel: str) -> np.ndarray:
        return rng.random(n) >= population.MISSING[channel]

    youth = 0.7 * users.night + rng.standard_normal(n)
    age = np.digitize(-youth, (-1.0, -0.3, 0.3, 1.0))
    columns = {
        "user_id": pa.array(users.first + np.arange(n), pa.int64()),
        "age_band": _strings(age, population.AGE_BANDS, kept("age_band")),
        "city_tier": _strings(np.digitize(users.city, (4, 12)), _TIERS, kept("city_tier")),
        "register_days": _floats(np.ceil(rng.gamma(2.0, 400.0, n))),
    }
    for task, probability in population.profile_probabilities(users).items():
        label = rng.random(n) < probability
        present = rng.random(n) >= population.PROFILE_LOST
        columns[f"{task}_label"] = _floats(label, present)
        columns[f"{task}_oracle"] = _floats(probability, present)
    return columns


def _strings(
    codes: np.ndarray, values: tuple[str, ...], present: np.ndarray | None = None
) -> pa.Array:
    """Strings, null where not present. Plain, as a reader would find them in anyone's Parquet."""
    indices = pa.array(codes.astype(np.int32), mask=None if present is None else ~present)
    return pa.DictionaryArray.from_arrays(indices, pa.array(values)).cast(pa.string())


def _floats(values: np.ndarray, present: np.ndarray | None = None) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=None if present is None else ~present)
