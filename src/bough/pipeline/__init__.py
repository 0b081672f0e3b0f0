"""The verbs that run several stages: `prune`, and `Pipeline`, a resumable run from training to exported files."""

from bough.pipeline.cutting_stages import Prune, Refit
from bough.pipeline.deployment_stages import Export, Quantize
from bough.pipeline.prune import Result, prune
from bough.pipeline.records import PipelineResult, StageRecord
from bough.pipeline.run import Pipeline
from bough.pipeline.stage import Shared, Stage, State
from bough.pipeline.training_stages import Distill, Train

__all__ = [
    "Distill", "Export", "Pipeline", "PipelineResult", "Prune", "Quantize", "Refit", "Result", "Shared", "Stage",
    "StageRecord", "State", "Train", "prune",
]  # fmt: skip
