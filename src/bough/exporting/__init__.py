"""What leaves bough: checkpoints, files for other runtimes, and C for microcontrollers."""

from bough.exporting.artifact import Exported, run_artifact
from bough.exporting.checkpoint import load, load_plan, refuse_checkpoint, save
from bough.exporting.embedded import EmbeddedExport, export_embedded
from bough.exporting.export import export

__all__ = [
    "EmbeddedExport", "Exported", "export", "export_embedded", "load", "load_plan", "refuse_checkpoint", "run_artifact", "save",
]  # fmt: skip
