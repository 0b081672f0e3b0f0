"""Refit restores what is a combination of what was kept, never makes a layer worse, and changes nothing else."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import PlanError
from bough.recovery import merge, refit, refit_
from tests.recovery.cut_models import CASES, SKIPPED, Chain, Heads, Residual, batches, cut_to_half, halved, twice
from tests.zoo import randomize
from tests.zoo.small import ZOO


@pytest.mark.parametrize("case", CASES)
def test_twins_of_what_is_kept_are_made_up_for_exactly(case):
    build, made, group, shape = CASES[case]
    model = twice(randomize(build()).eval(), *made)
    data = batches(shape)
    small, plan = cut_to_half(model, group, data[0])
    assert not torch.allclose(small(data[0]), model(data[0]), atol=1e-3)
    result = refit(model, small, plan, data, ridge=0)
    fresh = torch.randn(9, *shape, dtype=torch.float64)
    torch.testing.assert_close(result.model(fresh), model(fresh), rtol=0, atol=1e-8)
    assert not result.skipped


def test_residual_stream_that_is_cut():
    model = twice(randomize(Residual()).eval(), "stem", "down")
    data = batches((5,))
    small, plan = cut_to_half(model, "stem", data[0])
    result = refit(model, small, plan, data, ridge=0)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=0, atol=1e-8)


def test_head_dims_of_each_heads_own():
    model = randomize(Heads(4)).eval()
    with torch.no_grad():
        for p in model.v.parameters():
            dims = p.view(4, 3, -1)
            for head in range(4):
                dims[head, head % 3] = dims[head, (head + 1) % 3]
    data = batches((7, 6))
    graph = bough.trace(model, data[0])
    scores = bough.score(graph, bough.importance.Magnitude())
    scores["v/head_dim/each"] = np.stack([np.arange(3) != head % 3 for head in range(4)]).astype(float)
    plan = bough.plan(graph, scores, keep={"v/head_dim": 2}, ragged=True)
    assert plan.ragged == {"v/head_dim": "q/head"}
    result = refit(model, bough.cut(model, plan), plan, data, ridge=0)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=0, atol=1e-8)


def test_layers_left_out_are_made_up_for_by_those_that_stay():
    torch.manual_seed(0)
    model, inputs = ZOO["encoder"]()
    model = randomize(model.eval())
    data = batches(inputs.shape[1:])
    graph = bough.trace(model, data[0])
    scores = bough.score(graph, bough.importance.Magnitude())
    plan = bough.plan(graph, scores, keep=0.9, drop=["1.layers.0"])
    small = bough.cut(model, plan)
    result = refit(model, small, plan, data)
    assert any("linear2" in layer.name for layer in result.layers)
    error = [sum(float((model(x) - m(x)).detach().square().mean()) for x in data) for m in (small, result.model)]
    assert error[1] < error[0]


@pytest.mark.parametrize("name", [n for n in ZOO if n != "chunk_and_slice"])
def test_no_layer_gets_worse_and_nothing_else_changes(name):
    model, small, plan, data = halved(name)
    small.train()
    before = {
        k: v.clone() for k, v in (*model.state_dict().items(), *(("small." + k, v) for k, v in small.state_dict().items()))
    }
    result = refit(model, small, plan, data)
    assert result.layers
    assert all(layer.after <= layer.before * (1 + 1e-9) + 1e-12 for layer in result.layers)
    assert bool(result.skipped) == (name in SKIPPED)
    after = {**model.state_dict(), **{"small." + k: v for k, v in small.state_dict().items()}}
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(m.training for m in result.model.modules())
    fitted = {layer.name for layer in result.layers}
    for key, value in small.state_dict().items():
        if not key.endswith(("bias", "running_mean")) and key not in fitted:
            assert torch.equal(value, result.model.state_dict()[key]), key
    error = [sum(float((model(x) - m.eval()(x)).detach().square().mean()) for x in data) for m in (small, result.model)]
    assert error[1] < error[0]


def stream_of(model, x):
    """What the head of a residual net reads."""
    read = []
    hook = model.head.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    model.eval()(x)
    hook.remove()
    return read[0]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.ModuleList(nn.Conv1d(a, b, 1, bias=False) for _ in range(3)) for a, b in ((6, 12), (12, 6)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for up, down, norm in zip(self.up, self.down, self.norms, strict=True):
            x = x + norm(down(F.relu(up(x))))
        return self.head(x.mean(2))


def test_skips_are_made_up_for():
    model = randomize(Blocks()).eval()
    data = batches((6, 4))
    graph = bough.trace(model, data[0])
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    small = bough.cut(model, plan)
    expected = stream_of(model, data[0])
    plain, corrected = (refit(model, small, plan, data, skips=skips, ridge=0).model for skips in (False, True))
    errors = [float((stream_of(m, data[0]) - expected).square().mean()) for m in (plain, corrected)]
    assert errors[1] < 0.95 * errors[0]


class Experts(nn.Module):
    """Each row goes through one of three experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(8, 3), nn.Linear(8, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 16)), nn.Parameter(torch.randn(3, 16, 8))

    def forward(self, x):
        expert = self.gate(x).topk(1, dim=-1)[1][:, 0]
        order, n = expert.argsort(), self.gate.out_features
        ends = torch.histc(expert.float(), bins=n, min=0, max=n - 1).cumsum(0).to(torch.int32)
        y = torch._grouped_mm(F.relu(torch._grouped_mm(x[order], self.up, ends)), self.down, ends)
        return self.head(y[order.argsort()])


@pytest.mark.parametrize("dropped", [False, True])
def test_experts_are_fitted_on_the_rows_routed_to_them(dropped):
    torch.manual_seed(0)
    model = Experts().eval()  # in float32: grouped products have no float64
    with torch.no_grad():
        model.up[..., 8:] = model.up[..., :8]
        model.gate.bias[2] = -1e3 * dropped  # nothing goes to an expert that is dropped
    data = [torch.randn(200, 8) for _ in range(3)]
    graph = bough.trace(model, data[0])
    scores = {g.name: np.arange(g.size, 0, -1.0) for g in graph.groups}
    plan = bough.plan(graph, scores, keep={"up#2": 8, **({"up/expert": 2} if dropped else {})})
    small = bough.cut(model, plan)
    if dropped:
        assert tuple(small.down.shape) == (2, 8, 8)
    result = refit(model, small, plan, data, ridge=0)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=1e-3, atol=1e-3)
    assert "depends on data" in {layer.name: layer.note for layer in result.layers}["down"]


def test_a_failure_leaves_the_model_as_it_was():
    model, small, plan, data = halved("residual")
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(PlanError, match="not finite"):
        refit_(model, small, plan, [data[0], data[1] * float("nan")])
    with pytest.raises(PlanError, match="can not run on a batch"):
        refit_(model, small, plan, [data[0], data[1][:, :2]])
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in before.items())
    with pytest.raises(PlanError, match="once only"):
        refit_(model, small, plan, iter(data))
    with pytest.raises(PlanError, match="are one"):
        refit_(model, model, plan, data)
    with pytest.raises(PlanError, match="not cut by this plan"):
        refit_(model, copy.deepcopy(model), plan, data)
    with pytest.raises(PlanError, match="another model"):
        refit_(copy.deepcopy(small), small, plan, data)
    with pytest.raises(PlanError, match="another model"):
        merge(bough.trace(small, data[0]), plan)


def test_a_model_that_changes_its_input_changes_no_data():
    class Changing(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(2))

    layers = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)
    model, plain = (randomize(made).eval() for made in (Changing(*layers), nn.Sequential(nn.Linear(5, 5), *layers)))
    with torch.no_grad():
        plain[0].weight.copy_(2 * torch.eye(5))
        plain[0].bias.zero_()
    data = batches((5,))
    before = copy.deepcopy(data)
    small, plan = cut_to_half(model, "0", data[0].clone())
    found = refit(model, small, plan, data)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
    small, plan = cut_to_half(plain, "1", data[0])
    torch.testing.assert_close(found.model[2].weight, refit(plain, small, plan, data).model[3].weight)


def test_prune_refits():
    model, _, _, data = halved("mlp")
    result = bough.prune(model, data[0], bough.Budget(macs="60%"), refit=True, data=data)
    assert result.report.equal
    assert result.refit is not None
    assert result.refit.model is result.model
    assert "refitted" in str(result)
    with pytest.raises(PlanError, match="needs data"):
        bough.prune(model, data[0], bough.Budget(macs="60%"), refit=True)


def test_data_that_can_not_be_gone_through_again_is_refused_at_once():
    torch.manual_seed(0)
    model, x = Chain(), torch.randn(64, 5)
    for data in ([], (b for b in x.split(16))):
        with pytest.raises(PlanError, match="the data"):
            bough.prune(model, x[:1], bough.Budget(params="60%"), data=data, refit=True)


def test_a_fused_projection_is_refitted_after_a_ragged_cut():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.size = 2, 8
            self.qkv, self.proj, self.head = nn.Linear(12, 48), nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = ((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).reshape(b, n, self.heads * self.size)
            return self.head(x + self.proj(mixed))

    torch.manual_seed(0)
    model, x = Fused().eval(), torch.randn(64, 5, 12)
    graph = bough.trace(model, x[:2])
    plan = bough.plan(graph, bough.score(graph, "group"), keep={"qkv/head_dim": 5}, ragged=True)
    assert plan.ragged == {"qkv/head_dim": "qkv/head"}
    refitted = bough.refit(model, bough.cut(model, plan), plan, x.split(16))
    assert all(layer.after <= layer.before for layer in refitted.layers)
    assert "proj.weight" in {layer.name for layer in refitted.layers}
