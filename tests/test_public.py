"""The public names, and what importing them costs."""

import subprocess
import sys

import bough


def test_public_names():
    assert sorted(bough.__all__) == [
        "BoughError", "Budget", "Call", "Comparison", "Contrast", "Cost", "EnergyModel", "Exported", "Frozen", "Graph",
        "Group", "LatencyTable", "Layer", "Member", "Pipeline", "PipelineResult", "Plan", "Predictability", "Quantized",
        "Result", "Sandwich", "SearchResult", "Sparsified", "StreamedResult", "Subnet", "SubnetTable", "Supernet", "Training",
        "Verification", "allocation", "compare", "contrast", "correct_table", "cut", "cut_", "distill", "errors", "export",
        "finetune", "importance", "iterate", "load", "mask", "meet_arena", "meet_latency", "perplexity", "pipeline", "plan",
        "predictability", "prune", "prune_checkpoint", "quantization", "quantize", "rebuild", "recalibrate", "recovery",
        "refit", "save", "save_pretrained", "score", "search", "sensitivity", "sparsify", "sparsity", "supernet", "synthesize",
        "trace", "transfer_optimizer", "verify", "zero_shot",
    ]  # fmt: skip
    assert all(hasattr(bough, name) for name in bough.__all__)


def test_importing_is_light():
    code = "import sys, torch; torchs = set(sys.modules); import bough; print(*(set(sys.modules) - torchs))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {name for name in found.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in own} <= {"bough", "numpy", "safetensors"}  # no part of torch, no rich, no extra


def test_the_first_calls_import_no_compiler():
    """torch's own ways to run on shapes alone, and in a dispatch mode, import 800 modules: most of a second."""
    code = """
import sys, torch, bough
from torch import nn
conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                     nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
for model, x in ((conv, torch.zeros(1, 3, 16, 16)), (encoder, torch.zeros(1, 5, 16))):
    graph = bough.trace(model.eval(), x)
    bough.cut(model, bough.plan(graph, bough.score(graph, "l2"), keep=0.5))
print(*(m for m in ("torch._dynamo", "sympy", "torch._inductor", "scipy") if m in sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
