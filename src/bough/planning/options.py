"""How to plan, as one value: the keywords of `plan`, which other functions pass on to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bough.cost import EnergyModel
from bough.errors import PlanError, names_in
from bough.latency import LatencyTable
from bough.planning.alignment import aligned
from bough.planning.allocation import Allocator, allocator
from bough.tracing.selection import Selection, selectors


class OnConflict(StrEnum):
    """What `plan` does where the model's Python contradicts a cut: leave these groups, raise, or plan for `rebuild`."""

    FREEZE = "freeze"
    RAISE = "raise"
    REBUILD = "rebuild"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `plan`, which says what they mean.

    Raises:
        PlanError: options that no model allows.
    """

    allocation: str | Allocator = "global"
    round_to: int | str = 1
    minimum: float | Mapping[Any, float] = 1
    drop: Iterable[str] = ()
    ignore: Selection = ()
    only: Selection | None = None
    exact_only: bool = False
    uniform: bool = False
    ragged: bool = False
    on_conflict: str = OnConflict.FREEZE
    table: LatencyTable | None = None
    energy: EnergyModel | None = None
    whole: tuple[str, ...] = ()  # names of groups that stay besides what `ignore` names

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", names_in(self.drop, "drop"))  # planning may go through these more than once
        object.__setattr__(self, "ignore", selectors(self.ignore, "ignore"))
        object.__setattr__(self, "only", None if self.only is None else selectors(self.only, "only"))
        allocator(self.allocation)
        if aligned(self.round_to) < 1:
            raise PlanError(f"round_to={self.round_to} must be positive")
        if self.on_conflict not in list(OnConflict):
            raise PlanError(f"on_conflict={self.on_conflict!r} is unknown: use 'freeze', 'raise' or 'rebuild'")
        object.__setattr__(self, "on_conflict", OnConflict(self.on_conflict))
        if self.uniform and self.on_conflict == OnConflict.REBUILD:
            raise PlanError("uniform=True keeps a model's own class, and on_conflict='rebuild' gives it up: use one of them")
