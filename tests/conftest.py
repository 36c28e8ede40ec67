"""What every test needs before TensorFlow is imported, and what several kinds of tests share."""

from __future__ import annotations

import typing

import pytest

from tfx_pipeline import environment

environment.prepare()

if typing.TYPE_CHECKING:
    from tests.modules.transformed import Transformed


@pytest.fixture(scope="session")
def transformed(tmp_path_factory) -> Transformed:
    """`two_phase_spec`'s instances through Transform, once: to be read only."""
    from tests.modules.transformed import Transformed, two_phase_spec  # imports TensorFlow

    return Transformed(tmp_path_factory.mktemp("transform"), two_phase_spec())
