"""What leaves bough: checkpoints."""

from bough.exporting.checkpoint import load, save

__all__ = ["load", "save"]
