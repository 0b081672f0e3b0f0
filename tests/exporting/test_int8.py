"""INT8 files compute what the quantized program computes, on any processor."""

import numpy as np
import pytest
import torch

import bough
from bough.exporting.quantized_program import output_ranges
from bough.measuring import largest_error
from tests.exporting.models import convolutional
from tests.quantization.test_quantize import batches, trained

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e .[onnx]")
onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e .[onnx]")
pytest.importorskip("onnxscript", reason="export to ONNX needs onnxscript: pip install -e .[onnx]")
pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")
PLAIN = {"observer": "minmax", "equalize": False, "correct_bias": False}


@pytest.fixture(scope="module")
def quantized():
    model = trained(convolutional())
    return bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(), **PLAIN)


def test_onnx(quantized, tmp_path):
    x = batches(1, seed=3)[0]
    made = bough.export(quantized, x, tmp_path / "a.onnx", dynamic_batch=True)
    assert made.precision == "int8"
    assert made.signal_to_noise > 35  # a step of INT8 here and there
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert [o.version for o in onnx.load(tmp_path / "a.onnx").opset_import if not o.domain] == [18]
    types = {i.name: i.data_type for i in graph.initializer}
    rounded = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in types]
    assert len(rounded) == 4  # weights are stored as integers: no pass has taken the nodes away
    assert {types[n.input[0]] for n in rounded} == {onnx.TensorProto.UINT8}


def test_an_error_is_a_share_of_what_the_output_ranges_over(quantized):
    """Outputs near zero differ by a step of INT8 or two, which is much of their own size and little of the range."""
    ranges = output_ranges(quantized.model, ("y",))
    with torch.no_grad():
        y = quantized.model(100 * batches(1)[0])
    assert float(y.max() - y.min()) <= 2 * ranges["y"] * (1 + 1e-6)  # saturated at both ends
    near_zero = {"y": torch.tensor([0.01, 0.02])}
    assert largest_error(near_zero, {"y": torch.tensor([0.01, 0.03])}, {"y": 0.5}) == pytest.approx(0.02)
    assert largest_error({"y": y}, {"y": y + ranges["y"]}, {"y": 0.0}) == largest_error({"y": y}, {"y": y + ranges["y"]})


def test_no_sum_overflows(quantized, tmp_path):
    """onnxruntime adds uint8 x int8 in 16 bits on x86 without VNNI; with its optimizations off it computes in float."""
    x = batches(1, seed=3)[0]
    bough.export(quantized, x, tmp_path / "a.onnx")

    def run(level):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(tmp_path / "a.onnx", options, providers=["CPUExecutionProvider"])
        return session.run(None, {"input": x.numpy()})[0]

    exact = run(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    fast = run(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert np.abs(exact - fast).max() / np.abs(exact).max() < 0.03


def test_weights_of_seven_bits_stay_signed(tmp_path):
    model = trained(convolutional())
    done = bough.quantize(model, torch.zeros(1, 3, 8, 8), batches(2), reduce_range=True, **PLAIN)
    made = bough.export(done, batches(1)[0], tmp_path / "a.onnx")
    assert made.signal_to_noise > 35
    types = {i.name: i.data_type for i in onnx.load(made.path).graph.initializer}
    nodes = [n for n in onnx.load(made.path).graph.node if n.op_type == "DequantizeLinear" and n.input[0] in types]
    assert {types[n.input[0]] for n in nodes} == {onnx.TensorProto.INT8}


def test_executorch(quantized, tmp_path):
    pytest.importorskip("executorch", reason="needs executorch: pip install -e .[executorch]")
    made = bough.export(quantized, batches(1, seed=3)[0], tmp_path / "a.pte")
    assert made.precision == "int8"
    assert made.signal_to_noise > 35
