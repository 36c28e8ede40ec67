"""Main of every Bazel test: runs pytest on the files it is given."""

import sys

import pytest

if __name__ == "__main__":
    del sys.path[0]  # This folder: its `data` would hide the one that is tested.
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
