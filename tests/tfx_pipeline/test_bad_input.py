"""Bad input through `run` itself: one message, exit code 1, and every malformed row counted."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from tests.data.small import EVENT_TYPES, small_spec
from tests.repo.source_tree import ROOT

pytestmark = pytest.mark.slow

HEADER = ",".join(EVENT_TYPES)
USERS = "\n".join(["user_id,city,age,level", *[f"u{i},rome,30,gold" for i in range(40)]])
GOOD = [f"u{i % 40},{i},7,s1,home,x|y,1.5,{i % 2},0.5,a,2.5" for i in range(400)]
BAD = [
    "u1,1000,7",
    "u1,noon,7,s1,home,x,1.5,1,0.5,a,2.5",
    "u1,1000,7,s1,home,x,nan,1,0.5,a,2.5",
    "u1,1000,7,s1,home,x,inf,1,0.5,a,2.5",
    "u1,1000,7,s1,home,x,1.5,2,0.5,a,2.5",
]


def _text(rows: list[str]) -> bytes:
    return "\n".join([HEADER, *rows, ""]).encode()


LONG = [f"{row},{os.urandom(32).hex()}" for row in GOOD for _ in range(60)]
"""Of over 1 MB when compressed: find reads its header, only ingestion its broken end."""
CASES = {
    "malformed": ({}, {"events.csv": _text(GOOD + BAD)}),
    "cut": (
        {},
        {"events.csv.gz": gzip.compress(_text(LONG).replace(b"spend\n", b"spend,x\n"))[:-50]},
    ),
    "split": ({"split": {"eval_fraction": 1e-9}}, {"events.csv": _text(GOOD)}),
    "empty": ({}, {"events.csv": _text([])}),
}
_PROBE = """
import sys
from tfx_pipeline.__main__ import main
for folder in sys.argv[1:]:
    try:
        main(["run", f"--spec={folder}/spec.yaml", f"--data={folder}", f"--output={folder}/run"])
    except Exception:
        sys.excepthook(*sys.exc_info())
    print("====", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("bad")
    for case, (changes, files) in CASES.items():
        folder = root / case
        folder.mkdir()
        raw = small_spec(**changes).model_dump(mode="json")
        (folder / "spec.yaml").write_text(yaml.safe_dump(raw))
        (folder / "users.csv").write_text(USERS)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def said(root) -> dict[str, str]:
    """What each case said: one process, as TFX's imports take longer than all of them."""
    command = [sys.executable, "-c", _PROBE, *(str(root / case) for case in CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    messages = done.stderr.split("====\n")[:-1]
    return dict(zip(CASES, messages, strict=True))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (
            "malformed",
            r"5 of 445 rows \(events and users together\) are malformed,"
            r" over source\.max_dead_letter_fraction 0\.01:"
            r" see .*/malformed/run/dead_letters/ingestion\.jsonl",
        ),
        ("cut", r".*/cut/events\.csv\.gz: can't be read to its end: .*"),
        ("split", r"split 'eval' is empty: .* Change split\.eval_fraction, or give more users"),
        ("empty", r"no events in the input: source\.path has only empty files"),
    ],
)
def test_it_is_one_message(root, said, case, reason):
    log = root / case / "run/logs/run.log"
    assert re.fullmatch(f"error: {reason}\nThe whole story is in {log}\n", said[case]), said[case]
    assert "Traceback" in log.read_text()


def test_every_malformed_row_has_its_place_and_reason(root, said):
    lines = (root / "malformed/run/dead_letters/ingestion.jsonl").read_text().splitlines()
    letters = sorted((json.loads(line) for line in lines), key=lambda letter: letter["row"])
    assert [letter["row"] for letter in letters] == [402 + i for i in range(5)]
    assert [letter["raw"] for letter in letters] == BAD
    assert [letter["reason"] for letter in letters] == [
        "3 fields instead of 11",
        "time_ms: not integer milliseconds",
        "price: not a finite number",
        "price: not a finite number",
        "click: label of binary task 'click' is neither 0 nor 1",
    ]
