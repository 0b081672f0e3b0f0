"""Units that leave are folded into those that stay, and batch norms take statistics again: no training, no solving."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import PlanError
from bough.recovery import merge, recalibrate
from tests.recovery.cut_models import CASES, Chain, batches, cut_to_half, twice
from tests.zoo import randomize


@pytest.mark.parametrize("case", CASES)
def test_twins_are_merged_exactly_without_data(case):
    build, made, group, shape = CASES[case]
    model = twice(randomize(build()).eval(), *made)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (x,) = batches(shape, n=1)
    _, plan = cut_to_half(model, group, x)
    merged = merge(bough.trace(model, x), plan)
    torch.testing.assert_close(merged.model(x), model(x), rtol=0, atol=1e-12)
    assert not merged.skipped
    assert all(distance < 1e-6 for distance in merged.groups.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_merged_is_the_most_alike_by_hand():
    model = randomize(Chain()).eval()
    (x,) = batches((5,), n=1)
    small, plan = cut_to_half(model, "a", x)
    vectors = torch.cat([model.a.weight, model.a.bias[:, None]], 1).detach()
    expected = small.b.weight.detach().clone()
    for unit in range(4, 8):
        cosines = F.cosine_similarity(vectors[:4], vectors[unit][None])
        heir = int(cosines.argmax())
        share = max(float(cosines[heir]), 0) * vectors[unit].norm() / vectors[heir].norm()
        expected[:, heir] += share * model.b.weight.detach()[:, unit]
    torch.testing.assert_close(merge(bough.trace(model, x), plan).model.b.weight.detach(), expected)


def test_multiples_before_a_relu_are_merged_exactly():
    model = twice(randomize(Chain()).eval(), "a")
    with torch.no_grad():
        for p in model.a.parameters():
            p[4:] *= 3
    (x,) = batches((5,), n=1)
    _, plan = cut_to_half(model, "a", x)
    torch.testing.assert_close(merge(bough.trace(model, x), plan).model(x), model(x), rtol=0, atol=1e-12)


class ByName(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.conv, self.norm = layers[0], layers[1]

    def forward(self, x):
        return self.norm(input=self.conv(x))


def test_recalibrate_is_the_mean_and_variance_of_what_norms_read():
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))).eval()
    data = batches((3, 6, 6), n=3) + batches((3, 6, 6), n=1, size=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert recalibrate(model, data) is model
    seen = model[0](torch.cat(data)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, seen.mean(1))
    torch.testing.assert_close(model[1].running_var, seen.var(1))
    assert not any(m.training for m in model.modules())
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["1.running_mean", "1.running_var"]
    by_name = ByName(model)
    seen = recalibrate(by_name, [torch.cat(data)]).norm.running_mean
    torch.testing.assert_close(seen, by_name.conv(torch.cat(data)).mean((0, 2, 3)))
    with pytest.raises(PlanError, match="gives 1 one value of each channel"):
        recalibrate(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.randn(5, 3).split(4))
    with pytest.raises(PlanError, match="no batch norm"):
        recalibrate(nn.Linear(2, 2), [torch.randn(3, 2)])
    with pytest.raises(PlanError, match="nothing"):
        recalibrate(model, [])
