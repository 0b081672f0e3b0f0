"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bough.graph import SECONDS_AND_JOULES, Graph, shown
from bough.report.labels import LABELS, number


def show(table: Table) -> None:
    """Prints a table."""
    Console(soft_wrap=False).print(table)


def costs_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """One column per model, one line per cost; with two models, the ratio after over before."""
    table = Table()
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    if len(rows) == 2:
        table.add_column("ratio", justify="right")
    columns = list(rows.values())
    for key in columns[0]:
        values = [c[key] for c in columns]
        line = [LABELS.get(key, key), *(shown(key, v) if key in SECONDS_AND_JOULES else number(v) for v in values)]
        if len(values) == 2:
            line.append(f"{values[1] / values[0]:.3f}" if values[0] else "")
        table.add_row(*line)
    return table


def groups_table(graph: Graph) -> Table:
    """The groups of a graph."""
    table = Table("group", "kind", "units", "places", "removal is")
    for g in graph.groups:
        table.add_row(g.name, g.kind, str(g.size), str(len(g.members)), "exact" if g.exact else "renormalizing")
    return table


def layers_table(graph: Graph) -> Table:
    """The layers of a graph that can be left out."""
    table = Table("layer (--drop)", "leaving it out is")
    for layer in graph.layers:
        table.add_row(layer.name, "exact" if layer.exact else "as an identity in its place")
    return table
