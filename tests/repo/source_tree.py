"""The repository's Python files and what they import of ours."""

from __future__ import annotations

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("data", "modules", "serving", "tfx_pipeline", "benchmarks")


def python_files(package: str) -> list[pathlib.Path]:
    """Every Python file below a package, relative to the repository."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))


def our_imports(file: pathlib.Path) -> set[str]:
    """Dotted names of our own modules and packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def file_of(name: str) -> pathlib.Path:
    """The file a dotted name of ours stands in; the last parts may be names within it."""
    parts = name.split(".")
    while parts:
        path = pathlib.Path(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (ROOT / file).exists():
                return file
        parts.pop()
    raise FileNotFoundError(name)
