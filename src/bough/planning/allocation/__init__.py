"""How many units each group keeps: allocators, one protocol and a file each."""

from __future__ import annotations

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.planning.allocation.along import Global, Isomorphic, Uniform, form_of
from bough.planning.allocation.check import allocated
from bough.planning.allocation.columns import Allowed, Column, columns, unit_scores
from bough.planning.allocation.error import LeastError
from bough.planning.allocation.greedy import Greedy
from bough.planning.allocation.knapsack import Knapsack
from bough.planning.allocation.milp import Milp
from bough.planning.allocation.problem import Allocation, Allocator
from bough.planning.allocation.sensitivity import Sensitivity

ALLOCATORS: dict[str, Allocator] = {
    "global": Global(), "uniform": Uniform(), "isomorphic": Isomorphic(), "greedy": Greedy(), "knapsack": Knapsack(),
    "milp": Milp(), "error": LeastError(),
}  # fmt: skip


def allocator(given: str | Allocator) -> Allocator:
    """Return an allocator by its name.

    Args:
        given: one of `ALLOCATORS`, or an allocator, which is returned as it is.

    Raises:
        PlanError: an unknown name.

    Example:
        >>> import bough
        >>> bough.allocation.allocator("greedy") == bough.allocation.Greedy()
        True
    """
    check_arguments(allocator, locals())
    if isinstance(given, str):
        if given not in ALLOCATORS:
            names = ", ".join(map(repr, ALLOCATORS))
            raise PlanError(
                f"allocation={given!r} is unknown: use one of {names}, or an allocator such as bough.allocation.Greedy()"
            )
        return ALLOCATORS[given]
    return given


__all__ = [
    "ALLOCATORS", "Allocation", "Allocator", "Allowed", "Column", "Global", "Greedy", "Isomorphic", "Knapsack", "LeastError",
    "Milp", "Sensitivity", "Uniform", "allocated", "allocator", "columns", "form_of", "unit_scores",
]  # fmt: skip
