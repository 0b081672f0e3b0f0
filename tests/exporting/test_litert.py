"""LiteRT files; they need the package litert-torch, which continuous integration does not install."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

import bough
from bough.errors import ExportError
from bough.exporting.export import require_format
from tests.exporting.models import TwoInputs, convolutional

needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="needs litert-torch: pip install -e .[litert]"
)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ExportError, match=r"\.tflite needs ai_edge_litert: pip install bough\[litert\]"):
        require_format("net.tflite")


@needs_litert
def test_a_pruned_model_in_float_and_int8(tmp_path):
    x = torch.randn(1, 3, 8, 8)
    small = bough.prune(convolutional(), x, bough.Budget(params="60%"), importance="l2", refit=False).model
    assert bough.export(small, x, tmp_path / "net.tflite").error <= 1e-5
    quantized = bough.quantize(
        small, x, [torch.randn(8, 3, 8, 8)] * 2, observer="minmax", equalize=False, correct_bias=False
    )  # fmt: skip
    made = bough.export(quantized, x, tmp_path / "int8.tflite")
    assert made.precision == "int8"
    assert made.error <= 0.05
    from ai_edge_litert.interpreter import Interpreter

    stored = {np.dtype(t["dtype"]).name for t in Interpreter(str(made.path)).get_tensor_details()}
    assert stored == {"int8", "int32"}  # biases, shapes and sums in 32 bits; inputs and outputs in INT8, too
    with pytest.raises(ExportError, match="fixed shapes"):
        bough.export(small, x, tmp_path / "dynamic.tflite", dynamic_batch=True)
    assert not (tmp_path / "dynamic.tflite").exists()


@needs_litert
def test_several_inputs_and_a_nested_output(tmp_path):
    inputs = {"tokens": torch.tensor([[1, 2, 6]]), "scale": torch.ones(3)}
    made = bough.export(TwoInputs(), inputs, tmp_path / "a.tflite")
    assert list(made.outputs) == ["hidden", "rest.choice", "rest.sums.0"]
    assert made.error <= 1e-5
