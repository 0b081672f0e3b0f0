"""What leaves bough: checkpoints, and files for other runtimes."""

from bough.exporting.artifact import Exported, run_artifact
from bough.exporting.checkpoint import load, load_plan, refuse_checkpoint, save
from bough.exporting.export import export

__all__ = ["Exported", "export", "load", "load_plan", "refuse_checkpoint", "run_artifact", "save"]
