"""Each operator alone: the integer program is near the float model, and names what it can not lower."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bough.errors import ExportError
from bough.exporting.embedded import export_embedded
from bough.exporting.embedded.program import Copy, Lookup
from tests.exporting.embedded.nets import randomized

IMAGE, SEQUENCE, ROW = (1, 6, 9, 8), (1, 6, 11), (1, 12)


class Function(nn.Module):
    """A module of a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class First(nn.Module):
    """A module's first result."""

    def __init__(self, module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


OPERATORS = {
    "conv": (nn.Conv2d(6, 7, 3, padding=1), IMAGE),
    "conv, stride and dilation": (nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1)), IMAGE),
    "conv, groups": (nn.Conv2d(6, 9, 3, groups=3), IMAGE),
    "conv, same": (nn.Conv2d(6, 4, (3, 5), padding="same"), IMAGE),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), IMAGE),
    "depthwise, multiplier": (nn.Conv2d(6, 12, 3, stride=2, groups=6), IMAGE),
    "conv1d": (nn.Conv1d(6, 5, 4, stride=2, padding=1), SEQUENCE),
    "transposed": (nn.ConvTranspose2d(6, 5, 2, stride=2), IMAGE),
    "transposed, overlapping": (nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "transposed 1d": (nn.ConvTranspose1d(6, 3, 4, stride=2, padding=1), SEQUENCE),
    "conv and norm": (nn.Sequential(nn.Conv2d(6, 7, 3), nn.BatchNorm2d(7), nn.ReLU6()), IMAGE),
    "transposed and norm": (nn.Sequential(nn.ConvTranspose2d(6, 7, 3), nn.BatchNorm2d(7)), IMAGE),
    "norm": (nn.BatchNorm2d(6), IMAGE),
    "norm of rows": (nn.BatchNorm1d(12), ROW),
    "linear": (nn.Linear(12, 7), ROW),
    "linear over tokens": (nn.Linear(11, 7), SEQUENCE),
    "flatten and linear": (nn.Sequential(nn.Conv2d(6, 3, 3), nn.Flatten(), nn.Linear(126, 4)), IMAGE),
    "hardtanh": (nn.Sequential(nn.Linear(12, 7), nn.Hardtanh(-0.3, 0.4)), ROW),
    "hardswish": (nn.Hardswish(), IMAGE),
    "gelu": (nn.GELU(), IMAGE),
    "sigmoid": (nn.Sigmoid(), ROW),
    "tanh": (nn.Tanh(), ROW),
    "softmax": (nn.Softmax(-1), ROW),
    "softmax over channels": (nn.Softmax(1), IMAGE),
    "max pool": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "max pool 1d": (nn.MaxPool1d(2), SEQUENCE),
    "average pool": (nn.AvgPool2d(2), IMAGE),
    "average pool, padding counts": (nn.AvgPool2d(3, 1, 1), IMAGE),
    "average pool, padding does not count": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    "adaptive pool": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "global pool": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "mean over channels": (Function(lambda x: x.mean(1)), IMAGE),
    "product of activations": (Function(lambda x: x @ x.transpose(1, 2)), SEQUENCE),
    "product of permuted activations": (Function(lambda x: x.permute(0, 2, 3, 1) @ x.permute(0, 2, 1, 3)), IMAGE),
    "layer norm": (nn.LayerNorm(11), SEQUENCE),
    "layer norm over channels": (Function(lambda x: nn.LayerNorm(6).eval()(x.transpose(1, 2))), SEQUENCE),
    "attention": (Function(lambda x: functional.scaled_dot_product_attention(x, x, x)), SEQUENCE),
    "attention, causal": (Function(lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)), SEQUENCE),
    "lstm": (First(nn.LSTM(11, 7, batch_first=True)), SEQUENCE),
    "lstm, both ways": (First(nn.LSTM(11, 5, 2, bidirectional=True, batch_first=True)), SEQUENCE),
    "gru": (First(nn.GRU(11, 7, batch_first=True)), SEQUENCE),
    "rnn": (First(nn.RNN(11, 7, batch_first=True)), SEQUENCE),
    "flip": (Function(lambda x: x.flip(1, 2)), SEQUENCE),
    "add": (Function(lambda x: x + functional.relu(x)), IMAGE),
    "sub": (Function(lambda x: x - x.relu()), IMAGE),
    "mul": (Function(lambda x: x * torch.sigmoid(x)), IMAGE),
    "mul per channel": (Function(lambda x: x * x.mean((2, 3), keepdim=True)), IMAGE),
    "mul per position": (Function(lambda x: x * x.mean(1, keepdim=True)), IMAGE),
    "numbers": (Function(lambda x: (x * 0.7 + 1.5) / 2 - 0.25), IMAGE),
    "constant": (Function(lambda x: x + torch.arange(8.0)), IMAGE),
    "cat": (Function(lambda x: torch.cat([x, 2 * x, x[:, :2]], 1)), IMAGE),
    "slices": (Function(lambda x: x[:, 1:5:2, 2:, ::3]), IMAGE),
    "chunks": (Function(lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1]), IMAGE),
    "select": (Function(lambda x: x[:, 2] + x[:, -1]), IMAGE),
    "permute": (Function(lambda x: x.permute(0, 3, 1, 2).reshape(1, 8, 54).transpose(1, 2).relu()), IMAGE),
    "shuffle": (Function(lambda x: x.view(1, 2, 3, 9, 8).transpose(1, 2).reshape(1, 6, 9, 8)), IMAGE),
    "pad": (Function(lambda x: functional.pad(x, (1, 0, 2, 1), value=0.5)), IMAGE),
    "nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear, corners": (nn.Upsample((13, 7), mode="bilinear", align_corners=True), IMAGE),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_program_is_within_the_rounding_of_its_tensors(name):
    torch.manual_seed(0)
    model, shape = OPERATORS[name]
    model = randomized(model)
    data = torch.randn(24, *shape[1:])
    made = export_embedded(model, ((data[:1],), {}), None, data=[data])
    step = made.program.outputs[0].tensor.quantization.scale
    with torch.no_grad():
        worst = max(float((torch.from_numpy(made.run(x)[0]) - model(x)).abs().max()) for x in data.split(1))
    assert made.sqnr > 28, f"{made.sqnr:.1f} dB"
    assert worst < 16 * step, f"{worst / step:.1f} steps"


@pytest.mark.parametrize("width", [11, 23, 37])
def test_activations_are_fused_and_reshapes_move_nothing(width):
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 3))
    made = export_embedded(randomized(net), ((torch.randn(1, 3, 6, 6),), {}), None, data=[torch.randn(4, 3, 6, 6)])
    assert len(made.program.ops) == 2
    assert not any(isinstance(op, Copy | Lookup) for op in made.program.ops)


class Sorting(nn.Module):
    """An operator without an integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Function(lambda x: x.sort(-1).values)

    def forward(self, x):
        return self.block(x)


def test_an_unknown_operator_is_refused_with_module_and_line(tmp_path):
    with pytest.raises(ExportError, match=r"sort in module 'block', File .*test_operators\.py"):
        export_embedded(Sorting(), ((torch.randn(1, 4),), {}), tmp_path / "c", data=[torch.randn(2, 4)])
    assert list(tmp_path.iterdir()) == []


def test_reflection_padding_is_refused_by_name():
    with pytest.raises(ExportError, match=r"pad in .*'reflect'"):
        export_embedded(
            Function(lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect")), ((torch.randn(*IMAGE),), {}), None,
            data=[torch.randn(*IMAGE)],
        )  # fmt: skip


def test_a_float_model_without_data_is_refused():
    with pytest.raises(ExportError, match=r"Give calibration data"):
        export_embedded(nn.Linear(3, 2), ((torch.randn(1, 3),), {}), None)


def test_the_model_keeps_its_mode():
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    export_embedded(net, ((torch.randn(1, 3),), {}), None, data=[torch.randn(4, 3)])
    assert net.training
    assert net[1].training
