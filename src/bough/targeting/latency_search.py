"""What plan to try next, so that what is measured comes to a target.

First plans are made for limits on the latency that the table predicts, its scale corrected by each measurement. Where two of
them are close by the table, and one is measured too fast and the other too slow, the table has missed something between them:
a kernel that is slower at one width than at the next. Then plans between the two are tried, on the path that takes the groups
of the slow one over, one after the other; a group at which the time jumps stays as it is in the fast one. Where that path
ends below the target, it goes on to the plan that was the next too slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bough.latency import LatencyTable
from bough.planning import Budget, Plan
from bough.planning.budget import Goal, LeastOfTied

_MARGIN = 0.25  # of the tolerance: how far below the target a latency is to be when measured here
_FINEST = 4  # parts of a group's way that are distinguished

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan's counts, the sum of the table's times at scale 1, and the seconds measured."""

    counts: Counts
    plain: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Between:
    """Counts from those of `fast`, at 0, to those of `slow`, at the number of groups that differ: one group after another."""

    fast: Counts
    slow: Counts

    @property
    def differ(self) -> list[str]:
        return [n for n, k in self.fast.items() if self.slow[n] != k]

    def at(self, place: float) -> dict[str, int]:
        counts, whole = LeastOfTied(self.fast), int(place)
        counts |= {n: self.slow[n] for n in self.differ[:whole]}
        for n in self.differ[whole : whole + 1]:
            counts[n] += round((place - whole) * (self.slow[n] - counts[n]))
        return counts


@dataclass
class Limits:
    """Limits to plan for, as sums of the table's times at scale 1."""

    low: float = 0.0  # the largest that gave what was measured to be too fast
    high: float = float("inf")  # the smallest sum that was measured to be too slow
    tried: float = 0.0
    fast: Tried | None = None
    slow: list[Tried] = field(default_factory=list)  # the last is the closest

    def next(self, wanted: float, tolerance: float) -> float | None:
        """`wanted`, or where that is known to fail, between the two; None where limits lead no further."""
        if self.high < self.low * 1.001:
            return None
        if self.fast and self.slow and self.slow[-1].plain <= self.fast.plain * (1 + tolerance):
            return None
        self.tried = wanted
        if not self.low < self.tried < self.high:
            self.tried = (self.low + min(self.high, 2 * self.low)) / 2 if self.low else self.high * (1 - tolerance)
        return self.tried

    def unreachable(self) -> None:
        """No plan is small enough for the last one, by the table as it now is."""
        self.low = self.tried

    def too_slow(self, made: Tried) -> None:
        self.high = made.plain
        self.slow = sorted([*self.slow, made], key=lambda t: -t.seconds)
        self.low = self.low if self.low < made.plain else 0.0

    def too_fast(self, made: Tried) -> None:
        self.low, self.fast = max(self.tried, made.plain), made  # no plan is between the two
        self.high = self.high if self.high > made.plain else float("inf")


@dataclass
class Paths:
    """Places on a path from counts that are too fast to ones that are too slow (the last of them the closest); then on the
    next path, from where the last one has led."""

    start: Counts
    slow: list[Counts]
    path: Between | None = None
    low: float = 0.0  # the last place on the path that is too fast
    high: float = 0.0  # and the first that is too slow
    tried: float = 0.0
    jumping: set[str] = field(default_factory=set)

    def next(self) -> dict[str, int] | None:
        """None where all paths have been gone to their ends."""
        if self.high - self.low <= 1 / _FINEST:
            self.path = self._path()
        if self.path is None:
            return None
        self.tried = (self.low + self.high) / 2
        return self.path.at(self.tried)

    def is_end(self, counts: Counts) -> bool:
        """Whether counts are those of an end of the path, and what is known of it taken in."""
        assert self.path is not None
        if counts == self.path.fast:
            self.too_fast()
        elif counts == self.path.slow:
            self.too_slow()
        else:
            return False
        return True

    def too_slow(self) -> None:
        self.high = self.tried

    def too_fast(self) -> None:
        self.low = self.tried

    def _path(self) -> Between | None:
        if self.path is not None:
            self.start = self.path.at(self.low)
            self.jumping |= set(self.path.differ[int(self.low) : int(self.low) + 1])
        while self.slow:
            path = Between(self.start, {n: self.start[n] if n in self.jumping else k for n, k in self.slow[-1].items()})
            if path.differ:
                self.low, self.high = 0.0, float(len(path.differ))
                return path
            self.slow.pop()
        return None


@dataclass
class Search:
    """What to plan for: `next`, until it is None; `learn` takes in what was measured of it."""

    budget: Budget
    target: float  # seconds
    tolerance: float
    table: LatencyTable
    rounds: list[tuple[float, float]] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    paths: Paths | None = None  # once limits lead no further

    def next(self) -> Goal | None:
        """None where no plan is left between what is too fast and what is too slow."""
        if self.paths is None:
            middle = self.target * (1 - (1 + _MARGIN) / 2 * self.tolerance)  # of what settles
            limit = self.limits.next(middle / self.table.scale, self.tolerance)
            if limit is not None:
                return replace(self.budget, latency=limit * self.table.scale)
            if self.limits.fast is None:
                return None
            self.paths = Paths(self.limits.fast.counts, [t.counts for t in self.limits.slow])
        return self.paths.next()

    def settles(self, seconds: float) -> bool:
        """Whether a latency is within the tolerance, and so far below the target that noise does not lift it above."""
        return self.target * (1 - self.tolerance) <= seconds <= self._highest

    def known(self, plan: Plan) -> bool:
        """Whether a plan on the way between two need not be measured: it is one of them, or misses another limit."""
        if self.paths is None:
            return False
        if self.paths.is_end(_counts(plan)):
            return True
        costs, limits = plan.cost.to_dict(), self.budget.limits(plan.original)
        missed = any(costs[k] > limit for k, limit in limits.items() if k != "latency")
        if missed:
            self.paths.too_slow()
        return missed

    def learn(self, plan: Plan, seconds: float) -> None:
        """Takes a measurement in; one that contradicts an older one is trusted."""
        predicted = plan.cost.latency
        assert predicted is not None
        self.rounds.append((predicted, seconds))
        made = Tried(_counts(plan), predicted / self.table.scale, seconds)
        self.table = self.table.scaled(seconds / predicted)
        too_slow = seconds > self._highest
        if self.paths is not None:
            (self.paths.too_slow if too_slow else self.paths.too_fast)()
        elif too_slow:
            self.limits.too_slow(made)
        elif not self.settles(seconds):
            self.limits.too_fast(made)

    @property
    def _highest(self) -> float:
        return self.target * (1 - _MARGIN * self.tolerance)


def _counts(plan: Plan) -> dict[str, int]:
    return {n: k for n, (k, _) in plan.groups.items()}
