"""ExecuTorch files; they need the package executorch, which continuous integration does not install."""

import pytest
import torch

import bough
from bough.errors import ExportError
from bough.exporting import run_artifact
from tests.exporting.models import TwoInputs, convolutional

pytest.importorskip("executorch", reason="needs executorch: pip install -e .[executorch]")


def test_a_pruned_model_with_a_batch_that_varies(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    small = bough.prune(convolutional(), x, bough.Budget(params="60%")).model
    made = bough.export(small, x, tmp_path / "net.pte", dynamic_batch=True)
    assert made.error <= 1e-5
    made.path.write_bytes(made.path.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"net\.pte can not be loaded and run by its runtime"):
        run_artifact(made.path, {"input": x})


def test_several_inputs_and_a_nested_output(tmp_path):
    inputs = {"tokens": torch.tensor([[1, 2, 6]]), "scale": torch.ones(3)}
    made = bough.export(TwoInputs(), inputs, tmp_path / "a.pte")
    assert list(made.outputs) == ["hidden", "rest.choice", "rest.sums.0"]
    assert made.error <= 1e-5
