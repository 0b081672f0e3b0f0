"""Which subnets a step of training has: the sandwich rule, or the same ones in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from bough.arguments import check_fields
from bough.errors import TrainingError
from bough.planning import Budget
from bough.recovery import Distillation
from bough.supernet.subnet import Subnet

if TYPE_CHECKING:
    from bough.supernet.supernet import Supernet


@dataclass(frozen=True, slots=True)
class Sandwich:
    """Which subnets a step of training has, and what they learn.

    Attributes:
        random: number of random subnets beside the largest and the smallest.
        distillation: what the others learn from the largest: `logits` is the weight of its answers, the rest that of the task.
        shrinking: share of all steps over which the smallest width and depth that a step has fall from the largest subnet's to
            the smallest's (progressive shrinking); 0 trains all subnets from the start.

    Raises:
        TrainingError: an option out of range.

    Example:
        >>> Sandwich(random=1).random
        1
    """

    random: int = 2
    distillation: Distillation = field(default_factory=lambda: Distillation(logits=1.0))
    shrinking: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.random < 0 or not (isinstance(self.shrinking, Real) and 0 <= self.shrinking <= 1):
            raise TrainingError(
                f"Sandwich(random={self.random}, shrinking={self.shrinking}): random not negative, shrinking 0 to 1"
            )
        if self.distillation.match is not None:
            raise TrainingError("Sandwich: features of subnets have other widths than the largest's, so match must be None")

    def position(self, step: int, steps: int) -> float:
        """Return the position, from 0 (smallest) to 1 (largest), of the smallest subnet of a step of training."""
        shrunk = self.shrinking * steps
        return max(0.0, 1.0 - step / shrunk) if shrunk else 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Schedule:
    """The subnets of each step: the same ones, or the largest, the smallest and random ones.

    Attributes:
        fixed: the subnets of every step; if empty, they are drawn.
        seed: of the draws.
        steps: their number.
    """

    net: Supernet
    sandwich: Sandwich
    fixed: tuple[Subnet, ...]
    seed: int
    steps: int

    def subnets(self, step: int) -> list[Subnet]:
        """Return the subnets of a step; of those that are drawn, the largest is the first."""
        if self.fixed:
            return list(self.fixed)
        rng, position = np.random.default_rng((self.seed, step)), self.sandwich.position(step, self.steps)
        others = [self.net.sample(rng, smallest=position) for _ in range(self.sandwich.random)]
        return [self.net.largest, self.net.space.at(position), *others]

    def settings(self) -> list[Any]:
        """Return what identifies it, as plain values."""
        drawn = [self.sandwich.random, self.sandwich.shrinking]
        return [[[dict(s.counts), list(s.dropped)] for s in self.fixed]] if self.fixed else drawn


def named_subnets(net: Supernet, sandwich: Sandwich, subnets: Sequence[Budget | Subnet] | None) -> tuple[Subnet, ...]:
    """Return the subnets that the caller named, each once; none where they are drawn.

    Raises:
        TrainingError: no subnet in the sequence, or one beside a schedule of shrinking subnets.
        BudgetError: no subnet meets a budget.
        PlanError, ConflictError: as for `Supernet.at`.
    """
    if subnets is None:
        return ()
    chosen = [net.within(s) if isinstance(s, Budget) else net.subnet(s) for s in subnets]
    found = {subnet.key: subnet for subnet in chosen}
    if not found:
        raise TrainingError("fit(subnets=[]): give at least one subnet, such as that of Budget(macs='50%'), or leave it out")
    if sandwich.shrinking:
        raise TrainingError("fit(subnets=...): every step trains these subnets, so Sandwich(shrinking=...) must be 0")
    return tuple(found.values())
