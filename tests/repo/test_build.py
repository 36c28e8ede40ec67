"""BUILD files are true: each module stands in one target, whose deps cover its imports."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

from tests.repo.source_tree import PACKAGES, ROOT, file_of, our_imports, python_files


@dataclasses.dataclass(frozen=True)
class Target:
    label: str
    sources: frozenset[pathlib.Path]
    deps: frozenset[str]


def _targets() -> dict[str, Target]:
    """Every py_library, by label. BUILD files are Starlark, whose syntax is Python's."""
    targets = {}
    for package in PACKAGES:
        for statement in ast.parse((ROOT / package / "BUILD").read_text()).body:
            call = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "py_library":
                target = _target(package, {k.arg: k.value for k in call.keywords})
                targets[target.label] = target
    return targets


def _target(package: str, fields: dict[str, ast.expr]) -> Target:
    name = ast.literal_eval(fields["name"])
    deps = ast.literal_eval(fields["deps"]) if "deps" in fields else []
    return Target(
        f"//{package}:{name}",
        frozenset(_files(package, fields["srcs"])),
        frozenset(_absolute(package, dep) for dep in deps),
    )


def _absolute(package: str, label: str) -> str:
    if label.startswith(":"):
        return f"//{package}{label}"
    return label if ":" in label else f"{label}:{label.removeprefix('//')}"


def _files(package: str, value: ast.expr) -> set[pathlib.Path]:
    folder = ROOT / package
    if not isinstance(value, ast.Call):
        return {pathlib.Path(package, name) for name in ast.literal_eval(value)}
    patterns = ast.literal_eval(value.args[0])
    excluded = [ast.literal_eval(k.value) for k in value.keywords if k.arg == "exclude"]
    without = {p for names in excluded for pattern in names for p in folder.glob(pattern)}
    matched = {p for pattern in patterns for p in folder.glob(pattern)}
    return {path.relative_to(ROOT) for path in matched - without}


def _reachable(targets: dict[str, Target], label: str) -> set[str]:
    reached, waiting = set(), [label]
    while waiting:
        label = waiting.pop()
        if label not in reached:
            reached.add(label)
            waiting += targets[label].deps
    return reached


def test_every_module_stands_in_exactly_one_target():
    targets = _targets().values()
    for package in PACKAGES:
        for file in python_files(package):
            assert len([t.label for t in targets if file in t.sources]) == 1, file


def test_every_target_has_files_that_exist():
    for target in _targets().values():
        assert target.sources, target.label
        assert all((ROOT / file).exists() for file in target.sources), target.label


def test_deps_cover_imports_and_nothing_is_named_in_vain():
    targets = _targets()
    owner = {file: target.label for target in targets.values() for file in target.sources}
    for target in targets.values():
        used = {owner[file_of(name)] for file in target.sources for name in our_imports(file)}
        used -= {target.label}
        assert used <= _reachable(targets, target.label), f"{target.label} lacks deps"
        if target.label != "//benchmarks:benchmarks":
            needed = {dep for dep in target.deps if _reachable(targets, dep) & used}
            assert target.deps == needed, f"{target.label} has deps it doesn't use"
