import numpy as np
import pytest

from modules.metrics.activity import bucket_edges, bucket_names, bucket_of


def test_names_are_keeps_groups():
    assert bucket_names((50, 150, 300)) == ["[0, 50)", "[50, 150)", "[150, 300)", "300+"]
    assert bucket_names(()) == ["0+"]


@pytest.mark.parametrize("edges", [(), (15,), (50, 150, 300)])
def test_edges_come_back_from_names_in_any_order(edges):
    assert bucket_edges(bucket_names(edges)[::-1]) == list(edges)


def test_an_edge_belongs_to_the_bucket_it_opens():
    np.testing.assert_array_equal(
        bucket_of(np.array([0, 49, 50, 299, 300, 10_000]), (50, 150, 300)), [0, 0, 1, 2, 3, 3]
    )
