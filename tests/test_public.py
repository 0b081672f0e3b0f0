"""The public names, and what importing them costs."""

import subprocess
import sys

import bough


def test_public_names():
    assert sorted(bough.__all__) == [
        "BoughError", "Budget", "Comparison", "Cost", "EnergyModel", "Frozen", "Graph", "Group", "LatencyTable", "Layer",
        "Member", "Plan", "Result", "Training", "Verification", "allocation", "compare", "correct_table", "cut", "cut_",
        "distill", "errors", "finetune", "importance", "iterate", "load", "mask", "meet_latency", "plan", "prune", "rebuild",
        "recalibrate", "recovery", "refit", "save", "score", "sensitivity", "trace", "transfer_optimizer", "verify",
    ]  # fmt: skip
    assert all(hasattr(bough, name) for name in bough.__all__)


def test_importing_is_light():
    heavy = ("transformers", "onnx", "matplotlib", "sklearn", "timm", "accelerate", "scipy")
    code = f"import sys, bough; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
