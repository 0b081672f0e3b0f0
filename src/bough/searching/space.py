"""The space that a search draws from: the widths that each group may have, and layers that may be left out.

A point of the space is a choice: an array [dimensions] of integers. First comes one number per column of tied groups, the
steps removed from it (0 keeps all units), then one per list of optional layers, the number of its layers that are left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from bough.cost import Cost, shown
from bough.errors import BudgetError
from bough.latency import LatencyLine
from bough.planning.allocation import Column
from bough.planning.allocation.greedy import cumulated
from bough.planning.allocation.problem import SLACK
from bough.searching.candidate import Candidate
from bough.searching.pricing import Pricing

Choice = NDArray[np.int64]

_STEPS = 64  # points on a line between two choices
_SMALL = 10_000  # choices of a space that is gone through one by one
_ROUNDS = 4  # parts of a column that are put back one after the other
_SPREAD = 0.25  # standard deviation of a column's width around the common width of a random choice, as a share


class SearchSpace:
    """Choices, their candidates and their costs.

    Args:
        pricing: of the traced model.
        columns: tied groups with the widths that they may have.
        group_sizes: {group: units} of the whole model, in the order of its graph.
        optional: lists of layers that may be left out, each in this order: the first first.
        always_out: names of layers that are left out of every candidate.
        limits: upper bounds on costs, by field of `Cost`.
        errors: whether the scores of the columns are errors, as for allocation "error".

    Raises:
        BudgetError: not even the smallest candidate meets the limits.
    """

    def __init__(
        self, pricing: Pricing, columns: Sequence[Column], group_sizes: Mapping[str, int],
        optional: Sequence[Sequence[str]] = (), always_out: Sequence[str] = (), limits: Mapping[str, float] | None = None,
        errors: bool = False,
    ) -> None:  # fmt: skip
        self.pricing, self.columns, self.always_out = pricing, columns, tuple(always_out)
        self.optional = tuple(map(tuple, optional))
        self.limits = dict(limits or {})
        self.names = [*(c.groups[0].name for c in columns), *(f"without {', '.join(names)}" for names in optional)]
        self.highest: Choice = np.array([*(c.steps for c in columns), *map(len, self.optional)], dtype=np.int64)
        self._groups = list(group_sizes)
        place = {name: i for i, name in enumerate(self._groups)}
        self._sizes = np.array([float(n) for n in group_sizes.values()])
        self._group = np.array([place[g.name] for c in columns for g in c.groups], dtype=np.int64)
        self._column = np.array([i for i, c in enumerate(columns) for _ in c.groups], dtype=np.int64)
        widths = [c.counts[:, j] for c in columns for j in range(len(c.groups))]
        self._starts = np.cumsum([0, *map(len, widths)])[:-1]
        self._widths = np.concatenate([*widths, np.zeros(0)]).astype(np.float64)
        relative = cumulated(columns, relative=True)
        self.lost = [np.append(0.0, c.highest.sum(axis=1)) for c in columns] if errors else relative
        if self.limits and not self.feasible(self.highest)[0]:
            raise BudgetError(self._unreachable())

    @property
    def whole(self) -> Choice:
        """The choice that removes nothing."""
        return np.zeros(len(self.highest), dtype=np.int64)

    def within(self, limits: Mapping[str, float]) -> SearchSpace:
        """Return the space with further limits; the lower of two limits on one cost holds."""
        other = copy(self)
        other.limits = {n: min(m[n] for m in (self.limits, limits) if n in m) for n in {**self.limits, **limits}}
        return other

    def corrected(self, line: LatencyLine | None, limits: Mapping[str, float]) -> SearchSpace | None:
        """Return the space with latencies on a line and other limits on some costs; None if no candidate would meet them."""
        other = copy(self)
        other.pricing = self.pricing if line is None else self.pricing.corrected(line)
        other.limits = {**self.limits, **limits}
        return other if other.feasible(other.highest)[0] else None

    def size(self) -> float:
        """Return the number of choices, whether they meet the limits or not; inf where it is beyond floats."""
        with np.errstate(over="ignore"):
            return float(np.prod(self.highest + 1.0))

    def every(self) -> Iterator[Choice]:
        """Yield all choices that meet the limits, of a space of at most 10,000; of a larger one nothing."""
        if self.size() <= _SMALL:
            for indices in np.ndindex(*(int(n) + 1 for n in self.highest)):
                choice = np.array(indices, dtype=np.int64)
                if self.feasible(choice)[0]:
                    yield choice

    def counts(self, choices: Choice) -> NDArray[np.float64]:
        """Return the units kept [choices, groups] of choices [choices, dimensions]."""
        choices = np.atleast_2d(choices)
        counts = np.tile(self._sizes, (len(choices), 1))
        counts[:, self._group] = self._widths[self._starts + choices[:, self._column]]
        return counts

    def price(self, choices: Choice, wanted: Container[str] | None = None) -> dict[str, NDArray[np.float64]]:
        """Return the costs [choices] per field of `Cost`, by default of the fields that are limited."""
        choices = np.atleast_2d(choices)
        counts, wanted = self.counts(choices), self.limits if wanted is None else wanted
        patterns = choices[:, len(self.columns) :]
        unique, inverse = np.unique(patterns, axis=0, return_inverse=True)
        found: dict[str, NDArray[np.float64]] = {}
        for i, pattern in enumerate(unique):
            rows = np.flatnonzero(inverse.reshape(-1) == i)
            for name, values in self.pricing.costs(counts[rows], self._left_out(pattern), wanted).items():
                found.setdefault(name, np.zeros(len(choices)))[rows] = values
        return found

    def feasible(self, choices: Choice) -> NDArray[np.bool_]:
        """Return whether each of choices [choices, dimensions] meets the limits."""
        choices = np.atleast_2d(choices)
        meets = np.ones(len(choices), dtype=bool)
        if self.limits:
            for name, values in self.price(choices).items():
                meets &= values <= self.limits[name] * (1 + SLACK)
        return meets

    def loss(self, choice: Choice) -> float:
        """Return the importance that the widths of a choice lose, by the scores; layers are not counted."""
        return float(self.losses(choice).sum())

    def losses(self, choice: Choice) -> NDArray[np.float64]:
        """Return the importance [columns] that the widths of a choice lose in each column, by the scores."""
        return np.array([lost[k] for lost, k in zip(self.lost, choice[: len(self.lost)], strict=True)], dtype=np.float64)

    def candidate(self, choice: Choice) -> Candidate:
        """Return the candidate of one choice; choices that differ in groups of left-out layers alone have equal candidates."""
        left_out = self._left_out(choice[len(self.columns) :])
        counts = dict(zip(self._groups, self.counts(choice)[0], strict=True))
        return Candidate({name: int(counts[name]) for name in self.pricing.form(left_out).names}, left_out)

    def cost(self, choice: Choice) -> Cost:
        """Return all costs of one choice."""
        candidate = self.candidate(choice)
        return self.pricing.cost(candidate.counts, candidate.left_out)

    def choice_of(self, counts: Mapping[str, int]) -> Choice:
        """Return the choice with all optional layers in that keeps these units.

        Raises:
            KeyError: a group has another number of units than the space allows.
        """
        choice = self.whole
        for i, column in enumerate(self.columns):
            wanted = [counts[g.name] for g in column.groups]
            rows = np.flatnonzero((column.counts == wanted).all(axis=1))
            if not len(rows):
                raise KeyError(column.groups[0].name)
            choice[i] = rows[0]
        return choice

    def draw(self, rng: np.random.Generator) -> Choice:
        """Return a random choice around a random common width; it need not meet the limits."""
        level = rng.random()
        shares = np.clip(level + rng.normal(0.0, _SPREAD, len(self.columns)), 0.0, 1.0)
        lists = self.highest[len(self.columns) :]
        out = rng.binomial(lists, level / 2) if len(lists) else lists
        return np.concatenate([np.rint(shares * self.highest[: len(shares)]), out]).astype(np.int64)

    def shrunk(self, choice: Choice) -> Choice:
        """Return the first choice that meets the limits on the way from `choice` to the smallest one."""
        if self.feasible(choice)[0]:
            return choice
        target = self.highest.copy()
        target[len(self.columns) :] = choice[len(self.columns) :]
        for i in range(len(self.columns), len(target)):
            if self.feasible(target)[0]:
                break
            while target[i] < self.highest[i] and not self.feasible(target)[0]:
                target[i] += 1  # the smallest widths alone are not enough: leave out one more layer
        shares = np.arange(1, _STEPS + 1)[:, None] / _STEPS
        line = choice + np.ceil((target - choice) * shares).astype(np.int64)
        line[:, len(self.columns) :] = target[len(self.columns) :]
        return np.asarray(line[np.flatnonzero(self.feasible(line))[0]])

    def grown(self, choice: Choice, rng: np.random.Generator) -> Choice:
        """Return `choice` with units put back within the limits: in all columns alike, then a part of each in random order."""
        widths = len(self.columns)
        shares = np.arange(_STEPS, 0, -1)[:, None] / _STEPS
        line = np.concatenate([np.ceil(choice[:widths] * shares), np.tile(choice[widths:], (_STEPS, 1))], axis=1)
        line = line.astype(np.int64)
        within = self.feasible(line)
        last = int(np.argmin(within)) if not within.all() else _STEPS
        grown = line[max(last - 1, 0)].copy()
        most = np.maximum(self.highest[:widths] // _ROUNDS, 1)
        while True:
            before = grown.copy()
            for i in rng.permutation(widths):
                options = np.tile(grown, (int(min(grown[i], most[i])) + 1, 1))
                options[:, i] -= np.arange(len(options))[::-1]
                grown = options[int(np.argmax(self.feasible(options)))].copy()
            if (grown == before).all():
                return np.asarray(grown)

    def _left_out(self, pattern: NDArray[np.int64]) -> tuple[str, ...]:
        names = {*self.always_out, *(n for names, out in zip(self.optional, pattern, strict=True) for n in names[: int(out)])}
        return tuple(sorted(n for n in names if not any(n.startswith(f"{other}.") for other in names)))

    def _unreachable(self) -> str:
        smallest, whole = self.cost(self.highest).to_dict(), self.pricing.original.to_dict()
        missed = [
            f"{name}: at most {shown(name, limit)} is asked, the smallest candidate has {shown(name, smallest[name])} "
            f"({smallest[name] / whole[name]:.1%} of {shown(name, whole[name])})"
            for name, limit in self.limits.items()
            if smallest[name] > limit
        ]
        return f"no candidate meets the budget. {'; '.join(missed)}. Raise the budget, or lower minimum, round_to or ignore."
