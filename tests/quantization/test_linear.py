"""INT8 of linear layers alone."""

import copy

import pytest
import torch
from torch import nn

import bough
from bough.errors import QuantizationError
from bough.quantization import quantize_linear

pytest.importorskip("torchao", reason="quantize_linear needs torchao: pip install -e .[quantize]")


@pytest.mark.parametrize("kind", ["dynamic", "weight-only"])
def test_linear_layers_of_a_copy_are_int8(kind):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 3, 47, batch_first=True).train()
    small = bough.prune(layer, torch.randn(2, 5, 24), bough.Budget(params="70%")).model.train()
    before = copy.deepcopy(small.state_dict())
    done = quantize_linear(small, torch.randn(4, 5, 24), kind=kind)
    assert "linear1" in done.layers
    assert done.size < done.float_size
    assert done.signal_to_noise > (30 if kind == "dynamic" else 40)
    assert small.training
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_wrong_arguments():
    with pytest.raises(QuantizationError, match="use 'dynamic' or 'weight-only'"):
        quantize_linear(nn.Linear(2, 2), torch.randn(1, 2), kind="static")
    with pytest.raises(QuantizationError, match="no linear layer"):
        quantize_linear(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 2, 2))
    with pytest.raises(bough.errors.ArgumentError, match="model must be"):
        quantize_linear("net", torch.randn(1, 2))
