"""The planner against real processes: what it says they need is what they have."""

import pytest

from benchmarks.planning import compare, spec_of
from modules.training.cluster.config import parse_cluster
from modules.training.planning.baseline import measure

TIER = {"placement": "hybrid", "processes": {"ps": 1}, "rest_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def baselines():
    return measure(spec_of(), "finetune", {"item": 1_000_000})


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "cluster"), [(10_000_000, {}), (10_000_000, TIER)])
def test_planned_memory_is_within_15_percent(baselines, rows, cluster):
    compared = compare(spec_of(), rows, parse_cluster(cluster), baselines)
    assert compared
    for row in compared:
        assert abs(row.error) < 0.15, row
        # The table counts: a plan without it would be off by more.
        assert row.measured - baselines.server > 0.15 * row.measured
