"""One version's life: its memory comes back when it goes."""

import concurrent.futures

import psutil
import pytest

from serving.server.servable import Options
from serving.server.version import State, Version

PARTS, PART_BYTES = 300, 65_536


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """A SavedModel of 20 MB in small pieces, which malloc keeps when they are freed."""
    import tensorflow as tf

    module = tf.Module()
    module.parts = [tf.Variable(tf.ones([PART_BYTES // 4])) for _ in range(PARTS)]
    module.total = tf.function(
        lambda: {"total": tf.add_n([part[0] for part in module.parts])}, input_signature=[]
    )
    path = str(tmp_path_factory.mktemp("large") / "1")
    tf.saved_model.save(module, path, signatures={"total": module.total})
    return path


def test_memory_is_given_back_after_unloading(large):
    process = psutil.Process()
    for _ in range(2):
        version = Version(1, large)
        # In a thread of its own, as a server does: loading lowers its thread's priority for good,
        # and in this one all later tests' too.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(version.load, Options(warmup=False)).result()
        loaded = process.memory_info().rss
        version.unload().join()
        given_back = loaded - process.memory_info().rss
        assert version.state == State.END
    assert given_back > 0.8 * PARTS * PART_BYTES
