"""From scores and a budget to a plan."""

from bough.planning.budget import Budget
from bough.planning.plan import Plan, Scale
from bough.planning.planner import plan

__all__ = ["Budget", "Plan", "Scale", "plan"]
