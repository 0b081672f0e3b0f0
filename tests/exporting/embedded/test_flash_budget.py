"""Flash and peak memory that plans predict, beside the constants and the arena of the C that is exported from the cut model."""

import random
from functools import partial

import pytest
import torch
from torch import nn

import bough
from bough.cost import Prices
from bough.cost.flash import is_pointwise
from bough.errors import BudgetError
from bough.exporting.embedded import export_embedded
from bough.exporting.embedded.lowering.context import LOWERINGS
from bough.exporting.embedded.lowering.elementwise import function_of_one
from tests.exporting.embedded.nets import Residual, randomized

NETS = {
    "residual": (lambda: Residual(11, 24), (3, 20, 16)),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU(), nn.Conv2d(12, 24, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
        ),
        (1, 20, 16),
    ),
    "decoder": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), nn.ConvTranspose2d(8, 4, 3, stride=2),
            nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3), nn.Softmax(-1),
        ),
        (3, 12, 12),
    ),
    "perceptron": (
        lambda: nn.Sequential(
            nn.Linear(20, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 5)
        ),
        (20,),
    ),
    "norm first": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1),
            nn.AvgPool2d(2, padding=1), nn.ReLU6(), nn.Flatten(), nn.Linear(16 * 25, 10),
        ),
        (3, 16, 16),
    ),
    "sequence": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 16, 5, padding=2), nn.BatchNorm1d(16), nn.LeakyReLU(), nn.Conv1d(16, 32, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6),
        ),
        (4, 64),
    ),
}  # fmt: skip


def drawn(seed):
    """A convolutional net of random widths, kernels, strides and kinds of layers."""
    chance = random.Random(seed)
    layers, width = [], 3
    for _ in range(4):
        if chance.random() < 0.4:
            layers += [nn.Conv2d(width, width, 3, chance.choice([1, 2]), 1, groups=width), nn.BatchNorm2d(width), nn.ReLU()]
        after = chance.choice([11, 16, 23, 37])
        kernel = chance.choice([1, 3])
        layers += [nn.Conv2d(width, after, kernel, padding=kernel // 2), nn.BatchNorm2d(after)]
        layers += [chance.choice([nn.ReLU, nn.ReLU6, nn.Hardswish])()]
        width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def attending():
    encoder = nn.TransformerEncoderLayer(24, 3, 48, batch_first=True)
    for name, parameter in encoder.named_parameters():
        if "bias" in name or "norm" in name:
            nn.init.normal_(parameter, 1)
    return nn.Sequential(nn.Linear(12, 24), encoder, nn.Linear(24, 5))


NETS |= {f"random {seed}": (partial(drawn, seed), (3, 16, 16)) for seed in range(3)} | {"attention": (attending, (6, 12))}


class Halves(nn.Module):
    """Reads parts of a tensor, one of them after the whole is dead."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 2, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        return self.left(left) + self.right(right[:, :, ::1, :])


class Strided(nn.Module):
    def forward(self, x):
        return x[:, :, ::2, :] * x[:, :1, ::2, :]


def between(width, *layers):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )


COPYING = {
    "transposed": (lambda: between(2, nn.ConvTranspose2d(16, 2, 4, stride=4)), (3, 12, 12)),
    "transposed, padded": (lambda: between(2, nn.ConvTranspose2d(16, 2, 4, stride=2, padding=1)), (3, 12, 12)),
    "padded average": (lambda: between(16, nn.AvgPool2d(3, stride=2, padding=1)), (3, 16, 16)),
    "padded average of a sequence": (
        lambda: nn.Sequential(nn.Conv1d(3, 16, 3), nn.AvgPool1d(3, 2, 1), nn.Flatten(), nn.Linear(112, 4)), (3, 16)
    ),
    "halves": (Halves, (3, 16, 16)),
    "slices": (lambda: between(16, Strided()), (3, 16, 16)),
}  # fmt: skip


def exported(net, shape):
    return export_embedded(net, ((torch.randn(1, *shape),), {}), None, data=[torch.randn(4, *shape)])


@pytest.mark.parametrize("name", NETS)
def test_predicted_constants_are_those_of_the_export(name):
    """Of the whole net, and of one cut to a budget of flash."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    net, x = randomized(build()), torch.randn(1, *shape)
    graph = bough.trace(net, x)
    whole = Prices("int8", flash=True).form(graph).cost()
    assert whole.flash == pytest.approx(exported(net, shape).flash, rel=0.03)
    scores = bough.score(graph, bough.importance.Magnitude())
    budget = bough.Budget(flash=0.85 * whole.flash, precision="int8")
    plan = bough.plan(graph, scores, budget, allocation="greedy")
    assert plan.cost.flash <= 0.85 * whole.flash < plan.original.flash
    assert plan.cost.flash == pytest.approx(exported(bough.cut(net, plan), shape).flash, rel=0.03)


@pytest.mark.parametrize("name", NETS | COPYING)
def test_predicted_memory_is_enough_for_the_arena(name):
    """Of the whole net and of one cut to half: at most 3 times as much, and not below but for rounding up to 8 bytes."""
    torch.manual_seed(0)
    build, shape = (NETS | COPYING)[name]
    net, x = randomized(build()), torch.randn(1, *shape)
    graph = bough.trace(net, x)
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, bough.Budget(peak_memory="70%", precision="int8"), allocation="greedy")
    assert plan.cost.peak_memory <= 0.7 * plan.original.peak_memory
    for cost, model in ((plan.original, net), (plan.cost, bough.cut(net, plan))):
        arena = exported(model, shape).arena.size
        assert arena - 8 < cost.peak_memory < 3 * arena


def test_every_function_that_is_exported_as_a_table_is_counted_as_one():
    tables = {name for name, lowering in LOWERINGS.items() if lowering is function_of_one}
    assert {n for n in tables if not is_pointwise(n)} == {
        "requantized",
        "softsign",
    }  # the first is our own; torch splits softsign


def test_constants_of_a_sum_are_counted():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shift, self.scale = nn.Conv2d(2, 8, 3), nn.Parameter(torch.randn(1, 8, 1, 1)), 0.5

        def forward(self, x):
            return (self.first(x) + self.shift) * self.scale

    net = Shifted().eval()
    cost = Prices(flash=True).form(bough.trace(net, torch.randn(1, 2, 8, 8))).cost()
    assert cost.flash == 8 * 2 * 9 + 12 * 8 + 8 + 256 == exported(net, (2, 8, 8)).flash


@pytest.mark.parametrize(
    ("bounds", "message"),
    [({"precision": "float16"}, "precision='float16' is given"), ({"peak_memory": "64 KiB"}, "peak_memory would be counted")],
)
def test_flash_is_int8(bounds, message):
    with pytest.raises(BudgetError, match=f"{message}.*give precision='int8'"):
        bough.Budget(flash="256 KiB", **bounds)


def test_flash_alone_needs_no_precision():
    graph = bough.trace(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(1, 16))
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), bough.Budget(flash="50%"))
    assert plan.cost.flash <= plan.original.flash / 2
    assert "constants of the int8 C export" in str(plan)


def test_widths_for_cortex_m_are_multiples_of_4():
    graph = bough.trace(nn.Sequential(nn.Linear(16, 61), nn.ReLU(), nn.Linear(61, 4)), torch.randn(1, 16))
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, bough.Budget(flash="0.9 KiB"), round_to="cortex-m")
    assert next(iter(plan.kept.values()))
    assert all(len(indices) % 4 == 0 for dims in plan.kept.values() for indices in dims.values())
