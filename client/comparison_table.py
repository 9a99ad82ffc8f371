"""A comparison of jobs on a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.comparison import Comparison, Note, Row
from client.text import amount, signed_with_spread, with_spread

FIGURES = ("seeds", "mIoU", "gain", "step", "x no\nteacher")


def comparison_tables(comparisons: list[Comparison], notes: list[Note]) -> Group:
    """A table for each comparison and student, then what is to be known of single folders."""
    lines = [Text.assemble((f"{note.folder}  ", "yellow"), note.message) for note in notes]
    return Group(*[part for comparison in comparisons for part in _parts(comparison)], *lines)


def comparison_markdown(comparisons: list[Comparison], notes: list[Note]) -> str:
    """The same as a Markdown document, with one table for each comparison."""
    parts = [f"## {comparison.title}\n\n{_markdown_table(comparison.rows)}" for comparison in comparisons]
    if notes:
        parts.append("\n".join(f"- `{note.folder}`: {note.message}" for note in notes))
    return "\n\n".join(parts)


def _parts(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text(f"\n{comparison.title}", style="bold")
    for student, rows in groupby(comparison.rows, key=lambda row: (row.student, row.params, row.flops)):
        network, params, flops = student
        yield Text(f"\n{network}: {amount(params)} parameters, {amount(flops)} FLOPs")
        yield _table(list(rows))


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method", overflow="fold")
    for title in FIGURES:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*[Text(cell) for cell in (row.method, *_figures(row))])
    return table


def _markdown_table(rows: list[Row]) -> str:
    titles = ["student", "method", "parameters", "FLOPs", *[title.replace("\n", " ") for title in FIGURES]]
    rule = ["---", "---", *["---:"] * (len(titles) - 2)]
    cells = [[row.student, row.method, amount(row.params), amount(row.flops), *_figures(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *cells))


def _figures(row: Row) -> list[str]:
    return [
        str(len(row.seeds)),
        with_spread(row.miou_mean, row.miou_spread),
        _gain(row),
        "-" if row.step_ms is None else f"{row.step_ms:.1f} ms",
        "-" if row.step_ratio is None else f"{row.step_ratio:.2f}",
    ]


def _gain(row: Row) -> str:
    """With how many seeds it is from, where those are not all."""
    if row.gain_mean is None:
        return "-"
    gain = signed_with_spread(row.gain_mean, row.gain_spread)
    return (
        gain if len(row.gain_seeds) == len(row.seeds) else f"{gain} ({len(row.gain_seeds)} of {len(row.seeds)} seeds)"
    )
