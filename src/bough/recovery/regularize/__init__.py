"""Regularizers that train units to zero: penalties, proximal steps and masks on groups, with their coupled members."""

from bough.recovery.regularize.group_units import can_be_zero
from bough.recovery.regularize.masks import Masks, Sparse, apply_masks_, kept_share, masks_of
from bough.recovery.regularize.penalties import GroupLasso, GrowingPenalty, Slimming, SparseLearning
from bough.recovery.regularize.zeroing import ProgressiveZeroing, zeros
from bough.recovery.training import Attachment, Regularizer

__all__ = [
    "Attachment", "GroupLasso", "GrowingPenalty", "Masks", "ProgressiveZeroing", "Regularizer", "Slimming", "Sparse",
    "SparseLearning", "apply_masks_", "can_be_zero", "kept_share", "masks_of", "zeros",
]  # fmt: skip
