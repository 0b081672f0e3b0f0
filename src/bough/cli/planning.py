"""The options of planning, as commands take them. An option that is left out is not passed on: the API's default holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from bough.cli.options import chosen
from bough.cli.references import call, is_reference, with_options
from bough.cost import EnergyModel
from bough.errors import ModelReferenceError, PlanError
from bough.latency import LatencyTable
from bough.planning import Allocator
from bough.planning.alignment import ALIGNMENTS
from bough.planning.allocation import ALLOCATORS

ALLOCATION = f"{', '.join(ALLOCATORS)}, or an allocator of your own, module:callable"

RoundTo = Annotated[
    str | None, typer.Option(help=f"widths become multiples of this: a number, or one of {', '.join(ALIGNMENTS)}")
]
Minimum = Annotated[
    list[str] | None,
    typer.Option(help="least units kept, a number or a share: N of each group, GROUP=N of some; may be repeated"),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(help="a layer to leave out, such as blocks.3 (`bough inspect` lists them); may be repeated"),
]
OnConflict = Annotated[
    str | None, typer.Option(help="where the model's own Python contradicts the plan: freeze, raise or rebuild")
]


def planning_options(
    *,
    round_to: RoundTo = None,
    minimum: Minimum = None,
    drop: Drop = None,
    exact_only: Annotated[bool | None, typer.Option(help="leave groups over which a statistic runs")] = None,
    uniform: Annotated[bool | None, typer.Option(help="the same widths in repeated layers, as the config has them")] = None,
    ragged: Annotated[bool | None, typer.Option(help="each head keeps head dims of its own, where types allow it")] = None,
    on_conflict: OnConflict = None,
    table: Annotated[Path | None, typer.Option(help="JSON of a latency table, for --budget latency=...")] = None,
    energy: Annotated[str | None, typer.Option(help="module:fn; fn() is a bough.EnergyModel, for --budget energy=...")] = None,
) -> dict[str, Any]:
    """Return the keyword arguments of `bough.plan` that were given."""
    return chosen(
        round_to=None if round_to is None else _multiple(round_to),
        minimum=least(minimum) if minimum else None,
        drop=drop or None,
        exact_only=exact_only, uniform=uniform, ragged=ragged, on_conflict=on_conflict,
        table=None if table is None else LatencyTable.load(table),
        energy=None if energy is None else _energy(energy),
    )  # fmt: skip


def allocation_of(text: str) -> str | Allocator:
    """Return an allocator of the user's own, or the name of one of bough's."""
    if not is_reference(text):
        return text
    made: Allocator = with_options(text)
    return made


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


def _multiple(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _energy(reference: str) -> EnergyModel:
    made = call(reference)
    if not isinstance(made, EnergyModel):
        raise ModelReferenceError(f"--energy: {reference} returned {type(made).__name__}, not a bough.EnergyModel")
    return made
