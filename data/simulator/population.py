"""The payment app's people, items and behaviour: what is drawn, and from which probabilities.

Users come in blocks of `BLOCK`, each with its own random stream, so a user's events depend on
the seed and on nothing else: not on how many users there are or how files are cut. Every
step is one NumPy operation over all events of a block.

The story. A user has a taste in `TASTE_DIM` dimensions: the corner of their type, which may
drift to another type's corner, plus their own deviation. An item has a place in the same
space: the corner of its category plus its own deviation. Payments go to items near the
user's taste; impressions of offers are shown almost regardless of it. What happens then is a
Bernoulli draw whose logit is bilinear in taste and place (`CLICK_TASTE`, `CONVERSION_TASTE`).
Dimension 0 is curiosity for bait: it makes a user click and then *not* buy, so click and
conversion pull one representation in opposite directions.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

BLOCK = 256
"""Users drawn from one random stream."""
TASTE_DIM = 4
_ALL_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=TASTE_DIM)))
CATEGORY_CORNERS = _ALL_CORNERS
"""[16, 4]: one category at each corner of the taste space."""
TYPE_CORNERS = _ALL_CORNERS[_ALL_CORNERS.prod(axis=1) > 0]
"""[8, 4]: user types, the corners that differ in at least two dimensions."""
NUM_CATEGORIES = len(CATEGORY_CORNERS)
NUM_TYPES = len(TYPE_CORNERS)

CLICK_TASTE = np.array([1.6, 0.7, 0.7, 0.3])
CONVERSION_TASTE = np.array([-1.6, 0.3, 0.6, 0.9])
LEANING = 0.4
"""Added to every coordinate of taste and place in a logit: on average people are curious and
items are bait, so each side also matters alone and the product of both can be found by descent
(of a pure product, as of XOR, gradients say nothing at the start)."""

DEVICES = ("ios", "android", "mini_program", "web")
COUPONS = ("none", "discount", "cashback", "gift")
PAYMENT_TOOLS = ("balance", "debit_card", "credit_card", "credit_line")
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
NUM_CITIES, NUM_PAGES, NUM_SLOTS = 24, 6, 8

START_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z, the first day."""
DAYS = 90
LABELS_FROM_DAY = 36
"""Impression labels were only collected from this day on: there is more behaviour than label."""
LABEL_LOST = 0.1
"""Share of impression labels missing at random."""
PROFILE_LOST = 0.15
"""Share of users without a given profile label."""
MISSING = {
    "location": 0.1,
    "device": 0.05,
    "merchant": 0.08,
    "category": 0.03,
    "spm": 0.05,
    "coupon": 0.05,
    "payment_tool": 0.08,
    "amount": 0.05,
    "age_band": 0.2,
    "city_tier": 0.1,
}
"""Share of values lost at random, on top of those that can't exist (an unclicked conversion)."""

_WORLD, _BLOCKS, _EXTRA = 0, 1, 2
_PROPOSALS = 16


@dataclasses.dataclass(frozen=True)
class World:
    """What all users share. Items are rows [I]; the row number is the product id."""

    seed: int
    place: np.ndarray
    """float32 [I, TASTE_DIM]"""
    category: np.ndarray
    merchant: np.ndarray
    price: np.ndarray
    """float32 [I]: standardised log price."""
    appeal: np.ndarray
    cumulative_popularity: np.ndarray
    """float64 [I]: Zipf, last value 1."""
    page_corners: np.ndarray
    """float64 [NUM_PAGES, TASTE_DIM]"""


@dataclasses.dataclass(frozen=True)
class Users:
    """One block; every array is [BLOCK] unless stated."""

    first: int
    """Id of the block's first user."""
    activity: np.ndarray
    """Number of events."""
    types: np.ndarray
    """[BLOCK, 2]: before and after the drift (equal for those who don't)."""
    drift_at: np.ndarray
    """Fraction of the period at which a drifting user is halfway."""
    deviation: np.ndarray
    """[BLOCK, TASTE_DIM]"""
    spend: np.ndarray
    night: np.ndarray
    credit: np.ndarray
    city: np.ndarray
    device: np.ndarray


@dataclasses.dataclass(frozen=True)
class Events:
    """Events of one block, every array [N], ordered by user, then time. -1 codes are missing."""

    owner: np.ndarray
    """Row of the user in its block."""
    time_ms: np.ndarray
    taste: np.ndarray
    """[N, TASTE_DIM]: the user's taste at that moment."""
    payment: np.ndarray
    """bool: a payment, else the impression of an offer."""
    location: np.ndarray
    device: np.ndarray
    product: np.ndarray
    page: np.ndarray
    slot: np.ndarray
    coupon: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    payment_tool: np.ndarray
    log_amount: np.ndarray
    p_click: np.ndarray
    p_conversion: np.ndarray
    p_credit: np.ndarray
    labelled: np.ndarray
    """bool [N, 3]: click, conversion, credit labels that were collected (where they exist)."""


def draw_world(seed: int, num_items: int) -> World:
    rng = np.random.default_rng([seed, _WORLD])
    category = rng.permutation(np.arange(num_items) % NUM_CATEGORIES).astype(np.int32)
    per_category = max(1, num_items // (10 * NUM_CATEGORIES))
    merchant = category + NUM_CATEGORIES * rng.integers(per_category, size=num_items)
    base_price = rng.permutation(np.linspace(-1.2, 1.2, NUM_CATEGORIES))
    popularity = (rng.permutation(num_items) + 10.0) ** -0.8
    cumulative = np.cumsum(popularity)
    return World(
        seed=seed,
        place=(0.9 * CATEGORY_CORNERS[category] + 0.2 * _normal(rng, num_items, TASTE_DIM)).astype(
            np.float32
        ),
        category=category,
        merchant=merchant.astype(np.int32),
        price=(base_price[category] + 0.6 * _normal(rng, num_items)).astype(np.float32),
        appeal=(0.2 * _normal(rng, num_items)).astype(np.float32),
        cumulative_popularity=cumulative / cumulative[-1],
        page_corners=_ALL_CORNERS[rng.permutation(len(_ALL_CORNERS))[:NUM_PAGES]],
    )


def draw_users(world: World, block: int, mean_events: float) -> tuple[Users, np.random.Generator]:
    """The users of a block, and the stream that goes on with their events."""
    rng = np.random.default_rng([world.seed, _BLOCKS, block])
    before = rng.integers(NUM_TYPES, size=BLOCK)
    drifts = rng.random(BLOCK) < 0.25
    after = np.where(drifts, rng.integers(NUM_TYPES, size=BLOCK), before)
    corner = TYPE_CORNERS[before]
    spend = 0.4 * corner[:, 1] + 0.9 * _normal(rng, BLOCK)
    night = 0.4 * corner[:, 2] + 0.9 * _normal(rng, BLOCK)
    credit = 0.4 * corner[:, 3] + 0.9 * _normal(rng, BLOCK)
    ios = rng.random(BLOCK) < _sigmoid(0.8 * spend - 0.4)
    city_weight = (np.arange(NUM_CITIES) + 2.0) ** -0.7
    users = Users(
        first=block * BLOCK,
        activity=4 + rng.poisson(rng.gamma(3.0, (mean_events - 4.0) / 3.0, size=BLOCK)),
        types=np.stack([before, after], axis=1),
        drift_at=rng.uniform(0.2, 0.9, BLOCK),
        deviation=0.25 * _normal(rng, BLOCK, TASTE_DIM),
        spend=spend,
        night=night,
        credit=credit,
        city=rng.choice(NUM_CITIES, BLOCK, p=city_weight / city_weight.sum()),
        device=np.where(ios, 0, rng.integers(1, len(DEVICES), BLOCK)),
    )
    return users, rng


def draw_events(world: World, users: Users, rng: np.random.Generator) -> Events:
    owner, time_ms, location, device = _sessions(users, rng)
    n = len(owner)
    taste = _taste(users, owner, time_ms)
    payment = rng.random(n) < 0.5
    product = _choose_items(world, taste, np.where(payment, 1.6, 0.2), rng)
    place, price = world.place[product], world.price[product]
    page = np.argmax(0.5 * taste @ world.page_corners.T + rng.gumbel(size=(n, NUM_PAGES)), axis=1)
    slot = np.minimum(rng.geometric(0.3, n) - 1, NUM_SLOTS - 1)
    has_coupon = rng.random(n) < np.where(payment, 0.1, 0.4)
    coupon = np.where(has_coupon, rng.integers(1, len(COUPONS), n), 0)
    spend, credit = users.spend[owner], users.credit[owner]

    affinity = (taste + LEANING) * (place + LEANING) - LEANING**2
    p_click = _sigmoid(
        -0.5 + affinity @ CLICK_TASTE + world.appeal[product] - 0.12 * slot + 0.3 * has_coupon
    )
    p_conversion = _sigmoid(
        0.2 + affinity @ CONVERSION_TASTE + has_coupon * (0.4 - 0.4 * spend) + 0.6 * spend * price
    )
    p_credit = _sigmoid(-0.3 + 2.0 * credit + 0.7 * price)
    click = rng.random(n) < p_click
    conversion = click & (rng.random(n) < p_conversion)
    on_credit = rng.random(n) < p_credit
    second = rng.random(n) < np.where(on_credit, _sigmoid(-spend), _sigmoid(spend))
    log_amount = 3.5 + 0.8 * price + 0.8 * spend + 0.4 * _normal(rng, n)
    collected = time_ms >= START_MS + LABELS_FROM_DAY * 86_400_000
    return Events(
        owner=owner,
        time_ms=time_ms,
        taste=taste,
        payment=payment,
        location=location,
        device=device,
        product=product,
        page=page,
        slot=slot,
        coupon=coupon,
        click=click,
        conversion=conversion,
        payment_tool=2 * on_credit + second,
        log_amount=log_amount,
        p_click=p_click,
        p_conversion=p_conversion,
        p_credit=p_credit,
        labelled=collected[:, None] & (rng.random((n, 3)) >= LABEL_LOST),
    )


def profile_probabilities(users: Users) -> dict[str, np.ndarray]:
    """P(label = 1) of the per-user tasks, [BLOCK] each."""
    return {
        "high_spender": _sigmoid(-0.6 + 2.4 * users.spend),
        "night_owl": _sigmoid(-0.4 + 2.4 * users.night),
    }


def extra_signals(
    world: World, users: Users, events: Events, count: int
) -> tuple[np.ndarray, np.random.Generator]:
    """float32 [N, count]: noisy views of user and item, unit variance, one a generic channel.

    Has its own random streams: more channels change nothing in the core ones. Also returns the
    block's stream, for the values that get lost.
    """
    latents = np.concatenate(
        [
            events.taste,
            world.place[events.product],
            np.stack([users.spend, users.night, users.credit], axis=1)[events.owner],
        ],
        axis=1,
    )
    weights = np.random.default_rng([world.seed, _EXTRA]).standard_normal((count, latents.shape[1]))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    rng = np.random.default_rng([world.seed, _EXTRA, users.first // BLOCK])
    noise = rng.standard_normal((len(latents), count), dtype=np.float32)
    return 0.7 * (latents @ weights.T).astype(np.float32) + 0.7 * noise, rng


def _sessions(users: Users, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Events come in bursts of about two, at one place, on one device.

    Returns owner, time_ms, location and device, [N] each, by user and time.
    """
    per_user = (users.activity + 1) // 2
    visitor = np.repeat(np.arange(BLOCK), per_user)
    s = len(visitor)
    at_night = rng.random(s) < _sigmoid(1.8 * users.night[visitor] - 0.8)
    hour = np.where(at_night, rng.uniform(22, 30, s) % 24, 6 + 16 * rng.beta(2.0, 1.5, s))
    begin_ms = (rng.integers(DAYS, size=s) * 24.0 + hour) * 3_600_000
    travels = rng.random(s) < 0.15
    city = np.where(travels, rng.integers(NUM_CITIES, size=s), users.city[visitor])
    borrowed = rng.random(s) < 0.1
    device = np.where(borrowed, rng.integers(len(DEVICES), size=s), users.device[visitor])

    owner = np.repeat(np.arange(BLOCK), users.activity)
    first_session = np.cumsum(per_user) - per_user
    session = first_session[owner] + (rng.random(len(owner)) * per_user[owner]).astype(np.int64)
    time_ms = (begin_ms[session] + rng.exponential(180_000.0, len(owner))).astype(np.int64)
    order = np.lexsort((time_ms, owner))
    session = session[order]
    return owner, START_MS + time_ms[order], city[session], device[session]


def _taste(users: Users, owner: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
    """[N, TASTE_DIM]: the type's corner (sliding to the next one's) plus the user's deviation."""
    age = (time_ms - START_MS) / (DAYS * 86_400_000)
    after = _sigmoid((age - users.drift_at[owner]) / 0.06)[:, None]
    before, then = TYPE_CORNERS[users.types[owner].T]
    return 0.9 * ((1 - after) * before + after * then) + users.deviation[owner]


def _choose_items(
    world: World, taste: np.ndarray, pull: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Items drawn about ∝ popularity · exp(pull · taste·place), at a cost independent of I.

    `_PROPOSALS` items are proposed by popularity and one is picked by taste (Gumbel-max), so
    an item's share stays within a factor of its popularity.
    """
    shape = (len(taste), _PROPOSALS)
    proposed = np.searchsorted(world.cumulative_popularity, rng.random(shape))
    fit = np.einsum("nd,npd->np", taste.astype(np.float32), world.place[proposed])
    best = np.argmax(pull[:, None] * fit + rng.gumbel(size=shape), axis=1)
    return proposed[np.arange(len(taste)), best]


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
