"""Checkpoints of transformers that are pruned file by file, without ever holding the model."""

from bough.streaming.architecture import architecture, example_inputs
from bough.streaming.prune import StreamedResult, prune_checkpoint

__all__ = ["StreamedResult", "architecture", "example_inputs", "prune_checkpoint"]
