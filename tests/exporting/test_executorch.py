"""ExecuTorch files; they need the package executorch, which continuous integration does not install."""

import pytest
import torch

import bough
from bough.errors import ExportError
from bough.exporting import run_artifact
from tests.exporting.models import Biased, TwoInputs, convolutional

pytest.importorskip("executorch", reason="needs executorch: pip install -e .[executorch]")


def test_a_pruned_model_with_a_batch_that_varies(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    small = bough.prune(convolutional(), x, bough.Budget(params="60%")).model
    made = bough.export(small, x, tmp_path / "net.pte", dynamic_batch=True)
    assert made.error <= 1e-5
    made.path.write_bytes(made.path.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"net\.pte can not be loaded and run by its runtime"):
        run_artifact(made.path, {"input": x})


class Resized(torch.nn.Module):
    """Adds a grid, resized by an operator of which ExecuTorch has no kernel, or resizes its input by that operator."""

    def __init__(self, constant):
        super().__init__()
        self.grid, self.conv, self.constant = torch.nn.Parameter(torch.randn(1, 3, 4, 4)), torch.nn.Conv2d(3, 5, 3), constant

    def forward(self, x):
        grid = self.grid if self.constant else x[:, :, :4, :4]
        return self.conv(x + torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True))


def test_operators_on_constants_are_folded_and_missing_ones_named(tmp_path):
    x = torch.randn(1, 3, 8, 8)
    assert bough.export(Resized(constant=True), x, tmp_path / "a.pte").error <= 1e-5
    with pytest.raises(ExportError, match="no kernel of aten::_upsample_bicubic2d_aa"):
        bough.export(Resized(constant=False), x, tmp_path / "b.pte")
    assert not (tmp_path / "b.pte").exists()


class Folded(torch.nn.Module):
    """Parts of a weight, a transposed constant, and a constant that is changed in place."""

    def __init__(self):
        super().__init__()
        self.weight, self.grid = torch.nn.Parameter(torch.randn(10, 4)), torch.nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        first, second = self.weight.split(5)
        steps = torch.zeros(3, 5)
        steps += torch.arange(5)
        y = torch.nn.functional.linear(torch.nn.functional.linear(x, first), second.T)
        return torch.where(steps[:, :4] > 1, y, self.grid.T)


def test_constants_that_share_memory_or_change(tmp_path):
    assert bough.export(Folded(), torch.randn(3, 4), tmp_path / "a.pte").error <= 1e-5


def test_attention_whose_output_is_reshaped(tmp_path):
    assert bough.export(Biased(), torch.randn(2, 5, 12), tmp_path / "a.pte").error <= 1e-5


def test_several_inputs_and_a_nested_output(tmp_path):
    inputs = {"tokens": torch.tensor([[1, 2, 6]]), "scale": torch.ones(3)}
    made = bough.export(TwoInputs(), inputs, tmp_path / "a.pte")
    assert list(made.outputs) == ["hidden", "rest.choice", "rest.sums.0"]
    assert made.error <= 1e-5
