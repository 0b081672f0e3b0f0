"""Training of models in place: fine-tuning and distillation with a loop that resumes killed runs bit for bit."""

from bough.recovery.training.distill import Distillation, distill, distillation_loss
from bough.recovery.training.features import Features
from bough.recovery.training.finetune import finetune
from bough.recovery.training.loop import STATE_FILE, TrainingRun
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
from bough.recovery.training.task_loss import batch_loss, logits_of, run_batch

__all__ = [
    "STATE_FILE", "Attachment", "Distillation", "Features", "Regularizer", "Trained", "Training", "TrainingRun", "batch_loss",
    "check_optimizer", "combine_attachments", "distill", "distillation_loss", "finetune", "hook_after_step", "hook_before_step",
    "logits_of", "read_log", "restore_modes", "run_batch", "training_modes", "unwrap_optimizer",
]  # fmt: skip
