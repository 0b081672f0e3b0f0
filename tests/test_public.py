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
    code = "import sys, torch; torchs = set(sys.modules); import bough; print(*(set(sys.modules) - torchs))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {name for name in found.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in own} <= {"bough", "numpy", "safetensors"}  # no part of torch, no rich, no extra
