"""Training that makes units vanish: penalties and proximal steps on typed groups, whose coupled members go together."""

from bough.recovery.attach import Attachment, Regularizer
from bough.recovery.regularize.penalties import GroupLasso, GrowingPenalty, Slimming, SparseLearning
from bough.recovery.regularize.zeroing import ProgressiveZeroing, zeros

__all__ = [
    "Attachment", "GroupLasso", "GrowingPenalty", "ProgressiveZeroing", "Regularizer", "Slimming", "SparseLearning", "zeros",
]  # fmt: skip
