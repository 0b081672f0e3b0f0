"""Costs of subnets, by closed forms: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bough.cost import ClosedForm, Cost, EnergyModel, Prices
from bough.errors import BudgetError
from bough.latency import LatencyTable
from bough.planning.allocation import Allocator, Allowed, allocator
from bough.planning.budget import Budget, priced
from bough.planning.constraints.equations import Ties
from bough.planning.counting import Counting
from bough.supernet.ordering import Scores
from bough.supernet.space import SubnetSpace
from bough.supernet.subnet import Subnet


class SubnetPrices:
    """The costs of the subnets of one space.

    Args:
        space: of the supernet.
        prices: which costs are computed.
    """

    def __init__(self, space: SubnetSpace, prices: Prices) -> None:
        self.space, self.prices = space, prices
        self._forms: dict[tuple[str, ...], ClosedForm] = {}

    def form(self, dropped: Sequence[str]) -> ClosedForm:
        """Return the closed form of the costs without some layers."""
        key = tuple(sorted(dropped))
        if key not in self._forms:
            self._forms[key] = self.prices.form(self.space.without(key))
        return self._forms[key]

    def costs(self, subnets: Sequence[Subnet]) -> list[Cost]:
        """Return the cost of each subnet; subnets of equal depth are evaluated together."""
        found: dict[int, Cost] = {}
        by_depth: dict[tuple[str, ...], list[int]] = {}
        for i, subnet in enumerate(subnets):
            by_depth.setdefault(subnet.dropped, []).append(i)
        for dropped, places in by_depth.items():
            form = self.form(dropped)
            counts = np.array([[subnets[i].counts[n] for n in form.names] for i in places], dtype=np.float64)
            values = form.evaluate(counts.reshape(len(places), len(form.names)))
            for row, i in enumerate(places):
                found[i] = Cost.of({k: float(v[row]) for k, v in values.items()})
        return [found[i] for i in range(len(subnets))]


def prices_of(budget: Budget | None, table: LatencyTable | None, energy: EnergyModel | None) -> Prices:
    """Return the costs that a budget needs; those of shapes alone, a table and an energy model without one.

    Raises:
        BudgetError: a budget of latency without a table.
    """
    return Prices(None, table, energy) if budget is None else priced(budget, table, energy)


def subnet_within(
    prices: SubnetPrices,
    scores: Scores,
    budget: Budget,
    allowed: Allowed,
    frozen: Mapping[str, str],
    allocation: str | Allocator,
) -> Subnet:
    """Return the subnet that an allocator finds for a budget; layers are left out only where widths alone do not meet it.

    Args:
        prices: of the supernet's subnets, with the costs that the budget bounds.
        scores: of the ordered units.
        budget: upper bounds on what remains.
        allowed: the widths that groups may have.
        frozen: {group that is not elastic: reason}.
        allocation: as for `plan`.

    Raises:
        BudgetError: no subnet meets the budget.
    """
    space, decide = prices.space, allocator(allocation)
    original = prices.form(()).cost()
    for n in range(len(space.layers) + 1):
        rest = space.without(space.layers[:n])
        fixed = {**frozen, **space.frozen_without(space.layers[:n])}
        present = {g.name for g in rest.groups} - fixed.keys()
        classes = tuple(names for w in space.widths if (names := tuple(g for g in w.groups if g in present)))
        counting = Counting(rest, prices.form(space.layers[:n]), original, scores, budget, decide)
        try:
            found = counting(Ties(classes, fixed), allowed)
        except BudgetError:
            if n == len(space.layers):
                raise
            continue
        return space.trimmed({**space.sizes, **found.counts}, space.layers[:n])
    raise AssertionError("the last turn returns or raises")
