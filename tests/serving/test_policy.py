"""Which versions are served, of those on disk."""

import pytest
from google.protobuf import text_format

from serving import protos
from serving.server.policy import wanted_versions

ServableVersionPolicy = protos.message_class(
    "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy"
)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", [12]),
        ("latest {}", [12]),
        ("latest { num_versions: 2 }", [12, 9]),
        ("latest { num_versions: 9 }", [12, 9, 3]),
        ("all {}", [12, 9, 3]),
        ("specific { versions: 3 versions: 9 versions: 4 }", [9, 3]),
        ("specific {}", []),
    ],
)
def test_policies(policy, wanted):
    parsed = text_format.Parse(policy, ServableVersionPolicy())
    assert wanted_versions(parsed, {3, 9, 12}) == wanted
