"""Criteria: scores of units and layers, from weights alone or from data. Units with low scores are removed first."""

from bough.calibration import Data, Loss, Sums
from bough.importance.activation import ActivationMean, ActivationVariance, APoZ, HRank
from bough.importance.combine import Combined
from bough.importance.contribution import REAP
from bough.importance.depth import BlockInfluence
from bough.importance.expert_clusters import ExpertClusters
from bough.importance.expert_clusters import joined as joined
from bough.importance.gradient import OBD, Fisher, GateTaylor, Sensitivity, Taylor
from bough.importance.layer_loss import LayerLoss
from bough.importance.magnitude import LAMP, GroupNorm, Magnitude, NormScale, Random
from bough.importance.masking import MaskedLoss, Shapley
from bough.importance.protocols import Criterion, DataCriterion
from bough.importance.protocols import UnitScores as UnitScores
from bough.importance.reconstruction import OBS, ThiNet
from bough.importance.reconstruction import lost_signal as lost_signal
from bough.importance.reduce import elementwise, per_unit
from bough.importance.reduce import group_members as group_members
from bough.importance.redundancy import CosineRedundancy, GeometricMedian
from bough.importance.redundancy import unit_vectors as unit_vectors
from bough.importance.registry import CRITERIA, criterion
from bough.importance.registry import parse_criterion as parse_criterion
from bough.importance.registry import resolve_criterion as resolve_criterion
from bough.importance.score import score
from bough.importance.weighted_activation import FLAP, Wanda

__all__ = [
    "CRITERIA", "FLAP", "LAMP", "OBD", "OBS", "REAP", "APoZ", "ActivationMean", "ActivationVariance", "BlockInfluence",
    "Combined", "CosineRedundancy", "Criterion", "Data", "DataCriterion", "ExpertClusters", "Fisher", "GateTaylor",
    "GeometricMedian", "GroupNorm", "HRank", "LayerLoss", "Loss", "Magnitude", "MaskedLoss", "NormScale", "Random",
    "Sensitivity", "Shapley", "Sums", "Taylor", "ThiNet", "Wanda", "criterion", "elementwise", "per_unit", "score",
]  # fmt: skip
