"""Layers that take one array of shifts scale as before, but for the rounding of smaller multipliers."""

import numpy as np
import pytest
import torch
from torch import nn

from bough.exporting.embedded.fixed_point import factors
from bough.exporting.embedded.lowered import lowered
from bough.exporting.embedded.program import Conv, FullyConnected, Program, Quantization, Range, Tensor
from bough.exporting.embedded.shifts import share_shifts


def layer(scales):
    tensor = Tensor("", len(scales), Quantization(1.0, 0))
    bias = np.zeros(len(scales), np.int32)
    return FullyConnected(
        "", (tensor,), tensor, 1, np.ones((len(scales), 1), np.int8), bias, factors(scales), Range(0, -128, 127)
    )


def real(op):
    return op.factors.multiplier.astype(np.float64) * 2.0 ** (op.factors.shift - 31.0)


@pytest.mark.parametrize(
    ("scales", "shared"),
    [
        ([0.3, 0.01, 1e-4], True),
        ([0.01, 0.0, 0.002], True),  # a channel of zeros
        ([0.3, 1e-7], False),  # too few bits would be left
        ([1.5, 0.1], False),  # scales up
    ],
)
def test_shifts_are_shared_where_multipliers_keep_their_precision(scales, shared):
    wide, op = layer([0.4, 0.2, 0.1, 0.3]), layer(scales)
    program = Program(ops=[wide, op])
    share_shifts(program)
    assert np.allclose(real(op), scales, rtol=2.0**-16, atol=0)
    assert np.allclose(real(wide), [0.4, 0.2, 0.1, 0.3], rtol=2.0**-16, atol=0)
    assert np.array_equal(op.factors.shift, program.shifts[: len(scales)]) == shared


def test_all_layers_of_a_net_begin_one_array():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 11, 3), nn.ReLU(), nn.Conv2d(11, 23, 3), nn.ReLU(), nn.Flatten(), nn.Linear(23 * 16, 5))
    x = torch.randn(4, 3, 8, 8)
    program = lowered(net.eval(), ((x[:1],), {}), [x]).program
    layers = [op for op in program.ops if isinstance(op, (Conv, FullyConnected))]
    assert len(program.shifts) == 23
    assert len(set(program.shifts.tolist())) == 1
    assert all(np.array_equal(op.factors.shift, program.shifts[: len(op.factors.shift)]) for op in layers)
