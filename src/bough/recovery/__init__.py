"""Recover accuracy after a cut: refit, recalibrate, merge; fine-tune, distill, regularize, iterate; lottery tickets."""

from bough.recovery import regularize
from bough.recovery.correspondence import check_cut_shapes as check_cut_shapes
from bough.recovery.correspondence import name_after_cut as name_after_cut
from bough.recovery.iterate import Iterated, Step, iterate
from bough.recovery.merge import Merged, merge
from bough.recovery.merge_experts import MergedExperts, merge_experts
from bough.recovery.recalibrate import recalibrate
from bough.recovery.reconstruct import Reconstructed, ReconstructedBlock, reconstruct
from bough.recovery.refit import Refit, refit, refit_
from bough.recovery.regularize import Sparse, apply_masks_, kept_share, masks_of, zeros
from bough.recovery.schedule import budgets, cubic, geometric, linear
from bough.recovery.tickets import Ticket, find_tickets, magnitude_masks, random_masks, random_plan, rewind_, snapshot
from bough.recovery.training import Distillation, Features, LoRA, Trained, Training, distill, distillation_loss, finetune

__all__ = [
    "Distillation", "Features", "Iterated", "LoRA", "Merged", "MergedExperts", "Reconstructed", "ReconstructedBlock", "Refit",
    "Sparse", "Step", "Ticket", "Trained", "Training", "apply_masks_", "budgets", "cubic", "distill", "distillation_loss",
    "find_tickets", "finetune", "geometric", "iterate", "kept_share", "linear", "magnitude_masks", "masks_of", "merge",
    "merge_experts", "random_masks", "random_plan", "recalibrate", "reconstruct", "refit", "refit_", "regularize", "rewind_",
    "snapshot", "zeros",
]  # fmt: skip
