"""The README says what is there: its commands exist, its spec loads; every page's links lead
somewhere."""

import re
import subprocess

import pytest
import yaml

from data.spec import parse_spec
from tests.repo.source_tree import ROOT
from tfx_pipeline.__main__ import COMMANDS

PAGES = ("README.md", "CONTRIBUTING.md")
DOCS = sorted((ROOT / "docs").rglob("*.md"))
README = (ROOT / "README.md").read_text()


def test_its_two_commands_are_targets_of_the_makefile():
    blocks = re.findall(r"^```\n(make \w+)\n```$", README, re.MULTILINE)
    assert blocks == ["make run", "make test"]
    for block in blocks:
        dry = subprocess.run(
            [*block.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert "tools/setup" in dry.stdout


def test_it_names_every_command_and_no_other():
    assert set(re.findall(r"-m tfx_pipeline (\w+)", README)) == set(COMMANDS)


def test_its_example_spec_is_valid():
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    spec = parse_spec(yaml.safe_load(example), "README.md")
    assert [task.name for task in spec.tasks] == ["buy", "churn"]


@pytest.mark.parametrize("page", [*PAGES, *(str(p.relative_to(ROOT)) for p in DOCS)])
def test_its_links_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert links or path in DOCS
    assert not [link for link in links if not (path.parent / link).exists()]


def test_no_page_names_a_make_target_that_is_not_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"make ([\w-]+)", (ROOT / page).read_text())) <= targets
