"""What leaves bough: checkpoints, files for other runtimes, and C for microcontrollers."""

from bough.exporting.artifact import Exported, run_artifact
from bough.exporting.checkpoint import load, load_plan, refuse_checkpoint, save
from bough.exporting.embedded import EmbeddedExport, Footprint, export_embedded, footprint
from bough.exporting.export import export, require_format
from bough.exporting.pretrained import check_pretrained, save_pretrained

__all__ = [
    "EmbeddedExport", "Exported", "Footprint", "check_pretrained", "export", "export_embedded", "footprint", "load",
    "load_plan", "refuse_checkpoint", "require_format", "run_artifact", "save", "save_pretrained",
]  # fmt: skip
