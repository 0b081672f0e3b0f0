"""Scores per unit: low ones go first."""

from bough.calibration import Data, Loss, Sums
from bough.importance.activation import ActivationMean, ActivationVariance, APoZ, HRank, Sensitivity
from bough.importance.combine import Combined
from bough.importance.consumer import FLAP, Wanda
from bough.importance.depth import BlockInfluence
from bough.importance.gradient import OBD, Fisher, GateTaylor, Taylor
from bough.importance.magnitude import LAMP, GroupNorm, Magnitude, NormScale, Random
from bough.importance.masking import MaskedLoss, Shapley
from bough.importance.reconstruction import OBS, ThiNet
from bough.importance.reduce import elementwise, per_unit
from bough.importance.redundancy import CosineRedundancy, GeometricMedian, unit_vectors
from bough.importance.registry import CRITERIA, criterion
from bough.importance.score import Criterion, DataCriterion, UnitScores, score

__all__ = [
    "CRITERIA", "FLAP", "LAMP", "OBD", "OBS", "APoZ", "ActivationMean", "ActivationVariance", "BlockInfluence",
    "Combined", "CosineRedundancy", "Criterion", "Data", "DataCriterion", "Fisher", "GateTaylor", "GeometricMedian",
    "GroupNorm", "HRank", "Loss", "Magnitude", "MaskedLoss", "NormScale", "Random", "Sensitivity", "Shapley", "Sums",
    "Taylor", "ThiNet", "UnitScores", "Wanda", "criterion", "elementwise", "per_unit", "score", "unit_vectors",
]  # fmt: skip
