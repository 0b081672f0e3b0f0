"""How many units each group keeps: the allocators, and what is needed to write one (docs/extending.md)."""

from bough.planning.allocation import (
    ALLOCATORS,
    Allocation,
    Allocator,
    Allowed,
    Column,
    Global,
    Greedy,
    Isomorphic,
    Knapsack,
    LeastError,
    Milp,
    Sensitivity,
    Uniform,
    allocator,
    columns,
    form_of,
    unit_scores,
)

__all__ = [
    "ALLOCATORS", "Allocation", "Allocator", "Allowed", "Column", "Global", "Greedy", "Isomorphic", "Knapsack", "LeastError",
    "Milp", "Sensitivity", "Uniform", "allocator", "columns", "form_of", "unit_scores",
]  # fmt: skip
