"""`Profile`: the smallest, middle and largest subnets with their costs, and whether budgets can be met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bough.cost import Cost, shown
from bough.errors import BudgetError
from bough.planning import Budget
from bough.supernet.subnet import Subnet


@dataclass(frozen=True, slots=True)
class BudgetCheck:
    """Whether some subnet meets a budget.

    Attributes:
        budget: upper bounds on what remains.
        met: whether the smallest widths meet it, at some depth; costs never fall when units are added.
        missed: for each bound that is not met, (name of the cost, bound, cost of the subnet that comes closest).
    """

    budget: Budget
    met: bool
    missed: tuple[tuple[str, float, float], ...]

    @staticmethod
    def of(budget: Budget, smallest: Sequence[Cost], largest: Cost) -> BudgetCheck:
        """Return the check of a budget.

        Args:
            budget: a bound in percent is of `largest`.
            smallest: costs of the smallest widths at each depth.
            largest: cost of the largest subnet.
        """
        limits = budget.limits(largest)
        closest = min((cost.to_dict() for cost in smallest), key=lambda c: max(c[k] / limit for k, limit in limits.items()))
        missed = tuple((k, limit, float(closest[k])) for k, limit in limits.items() if closest[k] > limit)
        return BudgetCheck(budget, not missed, missed)

    def __str__(self) -> str:
        asked = ", ".join(f"{k}={v}" for k, v in asdict(self.budget).items() if v is not None)
        if self.met:
            return f"{asked}: can be met"
        why = "; ".join(f"{k}: at most {shown(k, limit)}, the smallest has {shown(k, n)}" for k, limit, n in self.missed)
        return f"{asked}: no subnet meets it ({why})"

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain data, for JSON."""
        asked = {k: v for k, v in asdict(self.budget).items() if v is not None}
        return {"budget": asked, "met": self.met, "missed": [list(m) for m in self.missed]}


@dataclass(frozen=True, slots=True)
class Profile:
    """Three subnets and their costs, and which budgets can be met.

    Attributes:
        subnets: {"smallest", "middle", "largest": subnet}.
        costs: {the same: cost}.
        budgets: a check of each budget.
    """

    subnets: dict[str, Subnet]
    costs: dict[str, Cost]
    budgets: tuple[BudgetCheck, ...] = ()

    def require_budgets(self) -> None:
        """Raise an error if a budget is met by no subnet.

        Raises:
            BudgetError: the message names each such budget.
        """
        unmet = [str(check) for check in self.budgets if not check.met]
        if unmet:
            raise BudgetError(
                f"{'; '.join(unmet)}. Lower minimum or round_to, make layers elastic with depth=True, or raise the budget"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain data, for JSON."""
        rows = {name: {**s.to_dict(), "cost": self.costs[name].to_dict()} for name, s in self.subnets.items()}
        return {"subnets": rows, "budgets": [check.to_dict() for check in self.budgets]}

    def __str__(self) -> str:
        lines = [f"{'':20} " + " ".join(f"{name:>18}" for name in self.costs)]
        for key in next(iter(self.costs.values())).to_dict():
            cells = [shown(key, cost.to_dict()[key]) for cost in self.costs.values()]
            lines.append(f"{key:20} " + " ".join(f"{cell:>18}" for cell in cells))
        lines.append(f"{'layers left out':20} " + " ".join(f"{len(s.dropped):18}" for s in self.subnets.values()))
        return "\n".join([*lines, *map(str, self.budgets)])


def profile_of(subnets: dict[str, Subnet], costs: Sequence[Cost], checks: Sequence[BudgetCheck]) -> Profile:
    """Return a profile of subnets, their costs in the same order, and checks of budgets."""
    return Profile(subnets, dict(zip(subnets, costs, strict=True)), tuple(checks))
