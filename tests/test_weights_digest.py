"""A digest tells weights apart, and two models that must belong together are held against each other by it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import bough
from bough import recovery
from bough.errors import PlanError
from bough.planning.compose import compose
from bough.tracing.fingerprint import weights_digest
from tests.test_cli import run
from tests.zoo import tasks

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
HALF = bough.Budget(params="50%")


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn, torch.uint8]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_one_changed_value_of_a_small_parameter_changes_the_digest(dtype):
    for n in (1, 3, 7, 8, 13, 300):
        values = torch.arange(n).remainder(8).to(dtype)
        whole = nn.ParameterList([nn.Parameter(values, requires_grad=False)])
        before = weights_digest(whole)
        assert weights_digest(copy.deepcopy(whole)) == before
        for i in range(n):
            other = copy.deepcopy(whole)
            other[0].data[i] = 16
            assert weights_digest(other) != before


def test_of_large_parameters_every_column_is_looked_at():
    """One column of a matrix changes, whichever: the elements that are looked at do not all stand in one column."""
    whole = nn.Linear(64, 512, bias=False)
    before = weights_digest(whole)
    for column in range(64):
        other = copy.deepcopy(whole)
        other.weight.data[:, column] += 1
        assert weights_digest(other) != before


def test_what_else_tells_weights_apart():
    model = nn.Linear(6, 4)
    same = copy.deepcopy(model)
    same.weight.data = same.weight.data.t().contiguous().t()  # other strides, the same values
    assert weights_digest(same) == weights_digest(model)
    part = copy.deepcopy(model)
    part.weight.data = torch.cat([torch.zeros(1), model.weight.data.flatten()])[1:].view(4, 6)  # does not begin at a word
    assert weights_digest(part) == weights_digest(model)
    flat = copy.deepcopy(model)
    flat.weight.data = model.weight.data.view(6, 4)
    turned = copy.deepcopy(model)
    turned.weight.data = model.weight.data.flip(0)
    assert len({weights_digest(m) for m in (model, flat, turned, copy.deepcopy(model).double())}) == 4
    norm = nn.BatchNorm1d(4)
    before = weights_digest(norm)
    norm(torch.randn(3, 4))  # changes buffers
    assert weights_digest(norm) == before
    assert weights_digest(nn.Linear(6, 4, device="meta")) is weights_digest(nn.ReLU()) is None


def test_plans_carry_the_digest_of_what_they_were_made_from():
    model = build()
    result = bough.prune(model, X[:1], HALF)
    assert result.plan.weights == weights_digest(model)
    assert bough.Plan.from_json(result.plan.to_json()).weights == result.plan.weights
    graph = bough.trace(result.model, X[:1])
    second = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert second.weights == weights_digest(result.model)
    assert compose(result.plan, second).weights == result.plan.weights
    on_meta = bough.trace(build().to("meta"), X[:1])
    assert bough.plan(on_meta, bough.score(bough.trace(model, X[:1]), bough.importance.Magnitude()), keep=0.5).weights is None


def test_refit_refuses_another_model():
    model, other = build(), build(1)
    result = bough.prune(model, X[:1], HALF)
    weights = [p.clone() for p in result.model.parameters()]
    with pytest.raises(PlanError, match=r"has other weights than the model that was pruned"):
        bough.refit(other, result.model, result.plan, X.split(16))
    with pytest.raises(PlanError, match=r"has other weights"):
        recovery.refit_(other, result.model, result.plan, X.split(16))
    assert all(torch.equal(a, b) for a, b in zip(weights, result.model.parameters(), strict=True))
    bough.refit(build(), result.model, result.plan, X.split(16))  # the same weights, made again
    bough.refit(other, result.model, replace(result.plan, weights=None), X.split(16))  # not known, as in older plans


def test_a_plan_may_be_applied_to_other_weights_and_these_refitted():
    plan, other = bough.prune(build(), X[:1], HALF).plan, build(1)
    small = bough.cut(other, plan)
    assert bough.verify(other, small, plan, X[:1]).equal
    assert bough.refit(other, small, plan, X.split(16)).layers
    assert bough.refit(other, small, bough.Plan.from_json(plan.to_json()), X.split(16)).layers
    with pytest.raises(PlanError, match="has other weights"):
        bough.refit(build(2), small, plan, X.split(16))


@pytest.mark.parametrize("command", ["refit", "distill"])
def test_commands_refuse_a_model_with_other_weights(command, tmp_path):
    """A builder without a seed: what it gives is not what was pruned."""
    run("prune", "tests.zoo.tasks:same_mlp", "--budget", "params=60%", "--out", str(tmp_path / "small"), "--json")
    data = "tests.zoo.tasks:unlabelled" if command == "refit" else "tests.zoo.tasks:five_inputs"
    words = [data, "--checkpoint", str(tmp_path / "small"), "--out", str(tmp_path / "out")]
    words += [] if command == "refit" else ["--epochs", "1"]
    torch.manual_seed(1)
    with pytest.raises(PlanError, match=r"has other weights.*set the seed"):
        run(command, "tests.zoo.small:mlp", *words)
    assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True
    run(command, "tests.zoo.tasks:same_mlp", *words)
    assert bough.load(tmp_path / "out", tasks.same_mlp)
