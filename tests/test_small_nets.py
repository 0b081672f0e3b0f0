"""Every small net, cut to half without a hint, equals its masked original; and it stays as it was."""

import copy

import pytest
import torch
from torch import nn

import bough
from tests.zoo import randomize
from tests.zoo.small import ZOO

WEIGHT_NORM = {n for n in ZOO if n.startswith("weight_norm")}  # masked weights would be 0 / 0


def built(name):
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    return randomize(model.eval()), inputs.double() if inputs.is_floating_point() else inputs


def planned(model, inputs, **options):
    graph = bough.trace(model, inputs)
    return bough.plan(graph, bough.score(graph, bough.importance.Random(1)), **{"keep": 0.5, **options})


@pytest.mark.parametrize("name", ZOO)
def test_cut_equals_masked(name):
    model, inputs = built(name)
    graph = bough.trace(model, inputs)
    assert not graph.unknown_ops
    plan = planned(model, inputs)
    assert any(kept < total for kept, total in plan.groups.values()) or name == "chunk_and_slice"
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, inputs)
    assert report.max_error < 1e-9
    assert report.scale > 1e-3


@pytest.mark.parametrize("name", sorted(set(ZOO) - WEIGHT_NORM - {"chunk_and_slice", "encoder"}))
def test_exact_groups_equal_plain_zeros(name):
    """The masking is written out here, from nothing but plan.kept."""
    model, inputs = built(name)
    plan = planned(model, inputs, exact_only=True)
    masked = copy.deepcopy(model)
    tensors = {**dict(masked.named_parameters())}
    with torch.no_grad():
        for tensor, dims in plan.kept.items():
            for dim, kept in dims.items():
                if tensor in tensors:
                    gone = [i for i in range(tensors[tensor].shape[dim]) if i not in kept]
                    tensors[tensor].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
        if plan.scales:
            pytest.skip("scales are folded into weights: the masked model has the old ones")
        torch.testing.assert_close(bough.cut(model, plan)(inputs), masked(inputs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_predicted_cost_is_the_cost_of_the_cut_model(name):
    model, inputs = built(name)
    plan = planned(model, inputs)
    again = bough.trace(bough.cut(model, plan), inputs).cost()
    assert (again.params, again.macs, again.size) == (plan.cost.params, plan.cost.macs, plan.cost.size)
    # a reshape that copies in the original may be a view where an axis has one unit left
    assert 0.9 * plan.cost.activation_bytes < again.activation_bytes <= plan.cost.activation_bytes
    assert 0.9 * plan.cost.peak_memory < again.peak_memory <= plan.cost.peak_memory


@pytest.mark.parametrize("name", ZOO)
def test_tracing_planning_and_cutting_change_nothing(name):
    model, inputs = built(name)
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {
        n: {k: v for k, v in m.__dict__.items() if isinstance(v, (int, tuple, str))} for n, m in model.named_modules()
    }
    random = torch.get_rng_state()
    bough.cut(model, planned(model, inputs))
    assert torch.equal(random, torch.get_rng_state())
    assert all(m.training for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    for n, m in model.named_modules():
        for key, value in attributes[n].items():
            assert m.__dict__[key] is value, (n, key)
        assert not any(hasattr(t, "_bough") for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)


def test_a_failing_forward_changes_nothing():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.layer = 4, nn.Linear(3, 4)

        def forward(self, x):
            self.seen = self.layer(x)
            raise RuntimeError("no way")

    model = Broken()
    with pytest.raises(bough.errors.TraceError, match="no way"):
        bough.trace(model, torch.randn(1, 3))
    assert type(model.width) is int
    assert not hasattr(model, "seen")


@pytest.mark.parametrize("name", ["residual", "gated_attention", "group_norm"])
def test_cut_in_place_keeps_parameters_and_equals_the_copy(name):
    model, inputs = built(name)
    plan = planned(model, inputs)
    expected = bough.cut(model, plan)(inputs)
    parameters = {n: id(p) for n, p in model.named_parameters()}
    assert bough.cut_(model, plan) is model
    assert {n: id(p) for n, p in model.named_parameters()} == parameters
    assert torch.equal(model(inputs), expected)


def test_cut_keeps_mode_flags_ties_and_dtype():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    model[0].weight.requires_grad_(False)
    model[2].bias = model[0].bias
    small = bough.cut(model, planned(model, torch.randn(1, 4).bfloat16()))
    assert small.training
    assert not small[0].weight.requires_grad
    assert small[0].bias.requires_grad
    assert small[2].bias is small[0].bias
    assert small[0].weight.dtype == torch.bfloat16
    assert small[0].out_features == small[2].in_features == 4
