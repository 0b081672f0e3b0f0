"""Scores per unit: low ones go first."""

from bough.importance.magnitude import GroupNorm, Magnitude, Random
from bough.importance.score import Criterion, score

__all__ = ["Criterion", "GroupNorm", "Magnitude", "Random", "score"]
