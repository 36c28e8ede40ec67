"""The page of a comparison of models, as Markdown and as an HTML file that needs nothing else."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jinja2

_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    """Of its column."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The first cell of a row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """facts: name and value of what the figures depend on; figures: inline SVG."""

    title: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    figures: Sequence[str]
    notes: Sequence[str]


def write_html(path: pathlib.Path, comparison: Comparison) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("comparison.html.jinja").render(page=comparison)
    path.write_text(page, encoding="utf-8")


def write_markdown(path: pathlib.Path, comparison: Comparison, html: pathlib.Path) -> None:
    """html: the other page, for the figures; it stands beside this one."""
    lines = [f"# {comparison.title}", ""]
    lines += [f"- {name}: {_escaped(value)}" for name, value in comparison.facts]
    lines += ["", f"The same with plots: [{html.name}]({html.name})."]
    for table in comparison.tables:
        lines += ["", f"## {table.title}", "", _row(table.header)]
        lines.append(_row(["---", *["---:"] * (len(table.header) - 1)]))
        lines += [_row([_marked(cell) for cell in row]) for row in table.rows]
        if table.note:
            lines += ["", _escaped(table.note)]
    for note in comparison.notes:
        lines += ["", _escaped(note)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(cell: Cell) -> str:
    # Significance marks are stars, which Markdown takes for emphasis.
    text = _escaped(cell.text)
    return f"<b>{text}</b>" if cell.best else text


def _escaped(text: str) -> str:
    for character in "\\|*<":
        text = text.replace(character, f"\\{character}")
    return text
