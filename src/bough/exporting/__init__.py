"""What leaves bough: checkpoints."""

from bough.exporting.checkpoint import load, load_plan, refuse_checkpoint, save

__all__ = ["load", "load_plan", "refuse_checkpoint", "save"]
