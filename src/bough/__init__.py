"""bough makes PyTorch models smaller and faster by removing whole structures.

trace -> score -> plan -> cut -> verify -> recover -> save
"""

from bough import allocation, errors, importance, pipeline, quantization, recovery, sparsity
from bough.analysis import sensitivity
from bough.calibration import synthesize
from bough.calls import Call
from bough.comparing import Comparison, compare
from bough.contrasting import Contrast, Predictability, contrast, predictability
from bough.cost import Cost, EnergyModel
from bough.cutting import Verification, cut, cut_, mask, rebuild, transfer_optimizer, verify
from bough.errors import BoughError
from bough.exporting import Exported, export, load, save, save_pretrained
from bough.graph import Frozen, Graph, Group, Layer, Member
from bough.importance import score
from bough.latency import LatencyTable
from bough.measuring import perplexity, zero_shot
from bough.pipeline import Pipeline, PipelineResult, Result, prune
from bough.planning import Budget, Plan, plan
from bough.quantization import Quantized, quantize
from bough.recovery import Training, distill, finetune, iterate, recalibrate, refit
from bough.searching import SearchResult, search
from bough.sparsity import Sparsified, sparsify
from bough.streaming import StreamedResult, prune_checkpoint
from bough.supernet import Sandwich, Subnet, SubnetTable, Supernet, supernet
from bough.targeting import correct_table, meet_arena, meet_latency
from bough.tracing import trace

__all__ = [
    "BoughError", "Budget", "Call", "Comparison", "Contrast", "Cost", "EnergyModel", "Exported", "Frozen", "Graph", "Group",
    "LatencyTable", "Layer", "Member", "Pipeline", "PipelineResult", "Plan", "Predictability", "Quantized", "Result",
    "Sandwich", "SearchResult", "Sparsified", "StreamedResult", "Subnet", "SubnetTable", "Supernet", "Training",
    "Verification", "allocation", "compare", "contrast", "correct_table", "cut", "cut_", "distill", "errors", "export",
    "finetune", "importance", "iterate", "load", "mask", "meet_arena", "meet_latency", "perplexity", "pipeline", "plan",
    "predictability", "prune", "prune_checkpoint", "quantization", "quantize", "rebuild", "recalibrate", "recovery", "refit",
    "save", "save_pretrained", "score", "search", "sensitivity", "sparsify", "sparsity", "supernet", "synthesize", "trace",
    "transfer_optimizer", "verify", "zero_shot",
]  # fmt: skip
__version__ = "0.1.0"
