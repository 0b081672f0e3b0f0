"""Models that PT2E has quantized keep their scales."""

import pytest
import torch
from torch import nn

from bough.exporting.embedded import export_embedded
from tests.exporting.embedded.nets import Residual, randomized

pytest.importorskip("torchao", reason="needs torchao, which quantizes by PT2E")
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = pytest.mark.filterwarnings("ignore")


def _quantized(model, data):
    graph = torch.export.export(model, (data[:1],)).module()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(graph, quantizer)
    for x in data.split(1):
        prepared(x)
    return convert_pt2e(prepared)


def test_a_graph_with_all_parameters_needs_no_data_and_gives_its_outputs():
    torch.manual_seed(0)
    data = torch.randn(16, 3, 9, 8)
    net = nn.Sequential(nn.Conv2d(3, 11, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(99, 5)).eval()
    quantized = _quantized(net, data)
    made = export_embedded(quantized, ((data[:1],), {}), None)
    assert made.calibrated == ()
    step = made.program.outputs[0].tensor.quantization.scale
    for x in data.split(1):
        assert float((torch.from_numpy(made.run(x)[0]) - quantized(x)).abs().max()) <= 1.01 * step


def test_values_that_the_graph_left_in_float_come_from_data():
    torch.manual_seed(0)
    data = torch.randn(16, 3, 9, 8)
    net = nn.Sequential(nn.Conv2d(3, 11, 3), nn.ReLU(), nn.ConvTranspose2d(11, 5, 2, stride=2), nn.Hardswish()).eval()
    quantized = _quantized(net, data)
    made = export_embedded(quantized, ((data[:1],), {}), None, data=[data])
    assert "conv_transpose2d" in made.calibrated
    assert made.sqnr > 25


def test_a_residual_net():
    torch.manual_seed(0)
    data = torch.randn(16, 3, 9, 8)
    quantized = _quantized(randomized(Residual(11, 23)), data)
    assert export_embedded(quantized, ((data[:1],), {}), None, data=[data]).sqnr > 25
