"""From scores and a budget to a plan."""

from bough.planning.allocation import Allocator
from bough.planning.budget import Budget
from bough.planning.plan import Plan, Scale
from bough.planning.planner import plan

__all__ = ["Allocator", "Budget", "Plan", "Scale", "plan"]
