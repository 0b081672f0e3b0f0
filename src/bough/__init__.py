"""bough makes PyTorch models smaller and faster by removing whole structures.

trace -> score -> plan -> cut -> verify -> save
"""

from bough import errors, importance
from bough.cost import Cost
from bough.cutting import Verification, cut, cut_, mask, verify
from bough.errors import BoughError
from bough.exporting import load, save
from bough.graph import Frozen, Graph, Group, Member
from bough.importance import score
from bough.pipeline import Result, prune
from bough.planning import Budget, Plan, plan
from bough.tracing import trace

__all__ = [
    "BoughError", "Budget", "Cost", "Frozen", "Graph", "Group", "Member", "Plan", "Result", "Verification", "cut", "cut_",
    "errors", "importance", "load", "mask", "plan", "prune", "save", "score", "trace", "verify",
]  # fmt: skip
__version__ = "0.1.0"
