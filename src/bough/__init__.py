"""bough makes PyTorch models smaller and faster by removing whole structures.

trace -> score -> plan -> cut -> verify -> recover -> save
"""

from bough import errors, importance, recovery
from bough.cost import Cost
from bough.cutting import Verification, cut, cut_, mask, rebuild, transfer_optimizer, verify
from bough.errors import BoughError
from bough.exporting import load, save
from bough.graph import Frozen, Graph, Group, Layer, Member
from bough.importance import score
from bough.pipeline import Result, prune
from bough.planning import Budget, Plan, plan
from bough.recovery import Training, distill, finetune, iterate
from bough.tracing import trace

__all__ = [
    "BoughError", "Budget", "Cost", "Frozen", "Graph", "Group", "Layer", "Member", "Plan", "Result", "Training", "Verification",
    "cut", "cut_", "distill", "errors", "finetune", "importance", "iterate", "load", "mask", "plan", "prune", "rebuild",
    "recovery", "save", "score", "trace", "transfer_optimizer", "verify",
]  # fmt: skip
__version__ = "0.1.0"
