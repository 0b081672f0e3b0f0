"""How to plan, as one value: what `plan` is told by keyword, and others hand on to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bough.cost import EnergyModel, LatencyTable
from bough.errors import PlanError, names_in
from bough.planning.alignment import aligned
from bough.planning.allocation import Allocator, allocator


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `plan`, which says what they mean.

    Raises:
        PlanError: options that no model allows.
    """

    allocation: str | Allocator = "global"
    round_to: int | str = 1
    minimum: float | Mapping[str, float] = 1
    drop: Iterable[str] = ()
    ignore: Iterable[str] = ()
    exact_only: bool = False
    uniform: bool = False
    ragged: bool = False
    on_conflict: str = "freeze"
    table: LatencyTable | None = None
    energy: EnergyModel | None = None

    def __post_init__(self) -> None:
        for field in ("drop", "ignore"):  # planning may go through them more than once
            names = getattr(self, field)
            object.__setattr__(self, field, names_in(names, field))
        allocator(self.allocation)
        if aligned(self.round_to) < 1:
            raise PlanError(f"round_to={self.round_to} must be positive")
        if self.on_conflict not in ("freeze", "raise", "rebuild"):
            raise PlanError(f"on_conflict={self.on_conflict!r} is unknown: use 'freeze', 'raise' or 'rebuild'")
        if self.uniform and self.on_conflict == "rebuild":
            raise PlanError("uniform=True keeps a model's own class, and on_conflict='rebuild' gives it up: use one of them")
