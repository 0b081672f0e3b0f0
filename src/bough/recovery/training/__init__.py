"""Training of models in place: fine-tuning and distillation with a loop that resumes killed runs bit for bit."""

from bough.recovery.training.accelerate import require_accelerate
from bough.recovery.training.dataloaders import training_loader
from bough.recovery.training.distill import Distillation, distill, distillation_loss
from bough.recovery.training.features import Features
from bough.recovery.training.finetune import finetune
from bough.recovery.training.loop import STATE_FILE, TrainingRun
from bough.recovery.training.lora import LoRA
from bough.recovery.training.model_state import full_state, load_full_state
from bough.recovery.training.modes import restore_modes, training_modes
from bough.recovery.training.optimizer_hooks import (
    Attachment,
    Regularizer,
    check_optimizer,
    combine_attachments,
    hook_after_step,
    hook_before_step,
    unwrap_optimizer,
)  # fmt: skip
from bough.recovery.training.options import Trained, Training
from bough.recovery.training.run_log import read_log
from bough.recovery.training.seeding import seed_all
from bough.recovery.training.task_loss import batch_loss, logits_of, run_batch

__all__ = [
    "STATE_FILE", "Attachment", "Distillation", "Features", "LoRA", "Regularizer", "Trained", "Training", "TrainingRun",
    "batch_loss", "check_optimizer", "combine_attachments", "distill", "distillation_loss", "finetune", "full_state",
    "hook_after_step", "hook_before_step", "load_full_state", "logits_of", "read_log", "require_accelerate", "restore_modes",
    "run_batch", "seed_all", "training_loader", "training_modes", "unwrap_optimizer",
]  # fmt: skip
