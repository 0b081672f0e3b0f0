"""After (or while) cutting: fine-tune, distill, regularize, iterate, and look for lottery tickets."""

from bough.recovery import regularize
from bough.recovery.distill import Distillation, distill, distillation_loss
from bough.recovery.features import Features
from bough.recovery.finetune import finetune
from bough.recovery.iterate import Iterated, Step, iterate
from bough.recovery.masks import Sparse, apply_masks_, kept_share, masks_of
from bough.recovery.regularize import zeros
from bough.recovery.schedule import budgets, cubic, geometric, linear
from bough.recovery.tickets import Ticket, find_tickets, magnitude_masks, random_masks, random_plan, rewind_, snapshot
from bough.recovery.training import Trained, Training

__all__ = [
    "Distillation", "Features", "Iterated", "Sparse", "Step", "Ticket", "Trained", "Training", "apply_masks_", "budgets",
    "cubic", "distill", "distillation_loss", "find_tickets", "finetune", "geometric", "iterate", "kept_share", "linear",
    "magnitude_masks", "masks_of", "random_masks", "random_plan", "regularize", "rewind_", "snapshot", "zeros",
]  # fmt: skip
