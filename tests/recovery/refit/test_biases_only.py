"""Compensation by biases alone: means of what was removed, against a computation by hand."""

import copy

import pytest
import torch
from torch import nn

import bough
from bough.errors import PlanError
from tests.zoo.transformers_text import TEXT, VOCABULARY, built


def pruned(net, x, share="60%"):
    graph = bough.trace(net, x[:2])
    plan = bough.plan(graph, bough.score(graph, "l2"), bough.Budget(params=share))
    return bough.cut(net, plan), plan


def mlp(*, last_bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.Sigmoid(), nn.Linear(10, 3, bias=last_bias)).double()
    return net, torch.randn(50, 6, dtype=torch.float64)


@torch.no_grad()
def test_bias_takes_the_mean_of_what_was_removed():
    """FLAP: b + W_removed mean(x_removed), for the first layer behind a cut; behind the next one, on the cut model's inputs."""
    net, x = mlp()
    small, plan = pruned(net, x)
    done = bough.refit(net, small, plan, x.split(13), biases_only=True)
    hidden, units = net[1](net[0](x)), plan.kept["0.weight"][0]
    removed = [u for u in range(12) if u not in units]
    kept = plan.kept["2.weight"][0]
    expected = net[2].bias + net[2].weight[:, removed] @ hidden[:, removed].mean(0)
    torch.testing.assert_close(done.model[2].bias, expected[kept])
    before_last = done.model[3](done.model[2](done.model[1](done.model[0](x))))
    last = net(x).mean(0) - before_last.mean(0) @ small[4].weight.T
    torch.testing.assert_close(done.model[4].bias, last)
    torch.testing.assert_close(done.model(x).mean(0), net(x).mean(0))
    for name, weight in small.state_dict().items():
        assert name.endswith("bias") or torch.equal(weight, done.model.state_dict()[name])
    assert [(layer.name, layer.ridge) for layer in done.layers] == [("2.weight", None), ("4.weight", None)]
    assert "-" in str(done)


@torch.no_grad()
def test_errors_are_those_of_the_outputs():
    net, x = mlp()
    small, plan = pruned(net, x)
    layer = bough.refit(net, small, plan, [x], biases_only=True).layers[0]
    target = net[2](net[1](net[0](x)))[:, plan.kept["2.weight"][0]]
    got = small[2](small[1](small[0](x)))
    error, spread = target - got, (target - target.mean(0)).square().sum()
    assert layer.before == pytest.approx(float(error.square().sum() / spread))
    assert layer.after == pytest.approx(float((error - error.mean(0)).square().sum() / spread))
    assert layer.after < layer.before


def test_layers_without_a_bias_are_listed():
    net, x = mlp(last_bias=False)
    small, plan = pruned(net, x)
    done = bough.refit(net, small, plan, [x], biases_only=True)
    assert done.skipped == {"4.weight": "it has no bias of its own that could take a mean"}
    assert [layer.name for layer in done.layers] == ["2.weight"]
    assert torch.equal(done.model[4].weight, small[4].weight)


def test_batch_norms_take_the_mean_of_convolutions():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    ).double().eval()  # fmt: skip
    x = torch.randn(20, 3, 6, 6, dtype=torch.float64)
    small, plan = pruned(net, x)
    assert plan.groups["0"][0] < 8
    done = bough.refit(net, small, plan, x.split(10), biases_only=True)
    wanted, got = net[:4](x)[:, plan.kept.get("2.weight", {}).get(0, range(4))], done.model[:4](x)
    torch.testing.assert_close(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)))


def test_transformers_take_biases_that_their_config_adds():
    """A Llama loaded with biases of zero: the means of all layers' outputs are those of the dense model."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = built("llama", "CausalLM", mlp_bias=True, attention_bias=True, **TEXT)
    batches = [{"input_ids": torch.randint(3, VOCABULARY, (4, 9))} for _ in range(2)]
    result = bough.prune(model, batches[0], bough.Budget(params="80%"), uniform=True, refit=False)
    done = bough.refit(model, result.model, result.plan, batches, biases_only=True)
    assert "lm_head.weight" in done.skipped
    assert "model.layers.0.mlp.down_proj.weight" in {layer.name for layer in done.layers}
    assert done.model.model.layers[0].mlp.down_proj.bias.abs().sum() > 0


def test_both_a_ridge_and_biases_alone_are_an_error():
    net, x = mlp()
    small, plan = pruned(net, x)
    held = copy.deepcopy(small.state_dict())
    with pytest.raises(PlanError, match="ridge holds weights back"):
        bough.refit(net, small, plan, [x], biases_only=True, ridge=0.1)
    assert all(torch.equal(v, held[k]) for k, v in small.state_dict().items())
