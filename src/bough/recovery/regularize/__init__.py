"""Regularizers that train units to zero: penalties, proximal steps and masks on groups, with their coupled members."""

from bough.recovery.regularize.group_units import can_be_zero as can_be_zero
from bough.recovery.regularize.masks import Masks as Masks
from bough.recovery.regularize.masks import Sparse as Sparse
from bough.recovery.regularize.masks import apply_masks_ as apply_masks_
from bough.recovery.regularize.masks import check_masks as check_masks
from bough.recovery.regularize.masks import kept_share as kept_share
from bough.recovery.regularize.masks import masks_of as masks_of
from bough.recovery.regularize.penalties import GroupLasso, GrowingPenalty, Slimming, SparseLearning
from bough.recovery.regularize.zeroing import ProgressiveZeroing, zeros
from bough.recovery.training import Attachment, Regularizer

__all__ = [
    "Attachment", "GroupLasso", "GrowingPenalty", "ProgressiveZeroing", "Regularizer", "Slimming", "SparseLearning", "zeros",
]  # fmt: skip
