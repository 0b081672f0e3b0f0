"""Recurrent layers, unrolled over their steps, and transformers as C."""

import pytest
import torch
from torch import nn

import bough
from bough.exporting import footprint
from bough.exporting.embedded import export_embedded
from tests.exporting.embedded.nets import COMPILER, Last, run_make


class Keywords(nn.Module):
    """A transformer over frames with a class token, such as the Keyword Transformer (Berg et al., 2021)."""

    def __init__(self, width=12, heads=2) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(10, width), nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(0.2 * torch.randn(1, 9, width))
        self.block = nn.TransformerEncoderLayer(width, heads, 23, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.places
        return self.head(self.block(x)[:, 0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_further_steps_of_a_recurrent_layer_need_hardly_any_constants(kind):
    torch.manual_seed(0)
    net = Last(kind).eval()

    def constants(steps):
        data = torch.randn(8, steps, 5)
        return export_embedded(net, ((data[:1],), {}), None, data=[data]).flash

    few, many = constants(10), constants(20)
    assert few <= many < 1.05 * few


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) on this machine")
@pytest.mark.parametrize(("build", "steps"), [(lambda: Last(nn.GRU), 6), (Keywords, 8)])
def test_a_pruned_model_gives_the_bytes_of_the_reference(tmp_path, build, steps):
    torch.manual_seed(0)
    net = build().eval()
    data = torch.randn(16, steps, net.embed.in_features if isinstance(net, Keywords) else 5)
    small = bough.prune(net, data[:1], bough.Budget(macs="50%"), importance="l2", refit=False).model
    made = export_embedded(small, ((data[:1],), {}), tmp_path / "c", data=[data])
    assert made.sqnr > 25
    assert run_make(tmp_path / "c", "test")["equal"] == 16
    found = footprint(small, ((data[:1],), {}))
    assert found.arena == made.arena.size
    assert found.flash == pytest.approx(made.flash, rel=0.1)  # tables that are equal at one input differ on data
