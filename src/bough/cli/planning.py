"""The options of planning, as commands are given them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from bough.cost import LatencyTable
from bough.errors import PlanError
from bough.planning.allocation import ALLOCATORS


def planning_options(
    *,
    allocation: Annotated[str, typer.Option(help=", ".join(ALLOCATORS))] = "global",
    round_to: Annotated[int, typer.Option(help="widths become multiples of this")] = 1,
    minimum: Annotated[
        list[str] | None,
        typer.Option(help="least units kept, a number or a share: N of each group, GROUP=N of some; may be repeated"),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="a layer to leave out, such as blocks.3; may be repeated")] = None,
    uniform: Annotated[bool, typer.Option(help="the same widths in repeated layers, told by the model's config")] = False,
    ragged: Annotated[bool, typer.Option(help="each head keeps head dims of its own, where the types allow it")] = False,
    exact_only: Annotated[bool, typer.Option(help="leave groups over which a statistic runs")] = False,
    table: Annotated[Path | None, typer.Option(help="JSON of a latency table, for --budget latency=...")] = None,
) -> dict[str, Any]:
    """The keyword arguments of `bough.plan`."""
    return {
        "allocation": allocation, "round_to": round_to, "minimum": least(minimum or ()), "drop": drop or (),
        "uniform": uniform, "ragged": ragged, "exact_only": exact_only,
        "table": None if table is None else LatencyTable.load(table),
    }  # fmt: skip


def least(given: Iterable[str]) -> dict[str, float]:
    """Of each name or pattern (of all groups, where there is none) the number of units, or the share below 1."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[name or "*"] = float(value)
        except ValueError:
            raise PlanError(f"--minimum {text!r}: write GROUP=N, such as conv1=8 or 'layer1.*=0.25', or N alone") from None
    return found
