"""The public names, and what importing them costs."""

import subprocess
import sys

import bough


def test_public_names():
    assert sorted(bough.__all__) == [
        "BoughError", "Budget", "Cost", "Frozen", "Graph", "Group", "Member", "Plan", "Result", "Verification", "cut", "cut_",
        "errors", "importance", "load", "mask", "plan", "prune", "save", "score", "trace", "verify",
    ]  # fmt: skip
    assert all(hasattr(bough, name) for name in bough.__all__)


def test_importing_is_light():
    heavy = (
        "import sys, bough; print([m for m in ('transformers', 'onnx', 'matplotlib', 'sklearn', 'timm') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
