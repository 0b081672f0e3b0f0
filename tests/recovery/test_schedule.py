"""Laws of schedules; cuts made one after the other are one cut."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bough
from bough.cost import Cost
from bough.errors import BudgetError, PlanError
from bough.planning.compose import compose
from bough.recovery import budgets, cubic, geometric, iterate, linear
from bough.recovery.regularize import ProgressiveZeroing
from tests.test_optimizer import Net
from tests.zoo import randomize, small_sequence, to_double

SCHEDULES = [geometric, linear, cubic]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(target=st.floats(1e-3, 1), steps=st.integers(1, 30))
def test_a_schedule_falls_and_ends_exactly_at_its_target(schedule, target, steps):
    shares = schedule(target, steps)
    assert len(shares) == steps
    assert shares[-1] == target
    assert all(a >= b - 1e-12 for a, b in zip([1.0, *shares], shares, strict=False))


def test_formulas():
    assert geometric(0.125, 3) == pytest.approx([0.5, 0.25, 0.125])
    assert linear(0.4, 3) == pytest.approx([0.8, 0.6, 0.4])
    assert [1 - s for s in cubic(0.2, 4)] == pytest.approx([0.8 * (1 - (1 - t / 4) ** 3) for t in (1, 2, 3, 4)])
    for wrong in ((0.0, 3), (1.5, 3), (0.5, 0)):
        with pytest.raises(BudgetError, match="share kept"):
            geometric(*wrong)


@given(params=st.floats(1, 100), size=st.integers(1, 8000), steps=st.integers(1, 9))
def test_budgets_are_of_the_original_model(params, size, steps):
    asked, original = bough.Budget(params=f"{params}%", size=size), Cost(1000, 50, 4000, 0, 0)
    bounds = budgets(asked, original, steps)
    assert bounds[-1].limits(Cost(1, 1, 1, 1, 1)) == asked.limits(original)  # absolute: whatever the model is by then
    assert all(b.params == pytest.approx(1000 * (params / 100) ** (t / steps)) for t, b in enumerate(bounds, 1))
    if size >= 4000:  # met from the start
        assert {b.size for b in bounds} == {size}


def halves(model, x, **options):
    graph = bough.trace(model, x)
    return bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5, **options)


@pytest.mark.parametrize("build", [lambda: (Net(), torch.randn(2, 2, 7, 7)), *small_sequence.ZOO.values()])
def test_two_cuts_are_one(build):
    model, x = build()
    model, x = randomize(model).eval(), to_double(x)
    first = halves(model, x)
    middle = bough.cut(model, first)
    second = halves(middle, x)
    small, once = bough.cut(middle, second), bough.cut(model, compose(first, second))
    for (name, a), (other, b) in zip(small.state_dict().items(), once.state_dict().items(), strict=True):
        assert name == other
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-12, atol=0)
    assert bough.verify(model, once, compose(first, second), x).equal


def test_what_leaves_layers_out_is_not_composed():
    model = nn.Sequential(nn.Linear(4, 6), *(Residual(6) for _ in range(3)), nn.Linear(6, 2)).eval()
    graph = bough.trace(model, torch.randn(1, 4))
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=1.0, drop=[graph.layers[0].name])
    with pytest.raises(PlanError, match="leaves out a layer"):
        compose(plan, plan)
    planning = functools.partial(bough.plan, drop=[graph.layers[0].name])
    trained = []
    with pytest.raises(PlanError, match="cut it out first"):
        iterate(
            model, torch.randn(1, 4), bough.Budget(params="60%"), lambda m, s: trained.append(s), steps=2, planning=planning
        )
    assert not trained


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + self.inner(x)


def test_iterate_carries_the_optimizer_and_keeps_to_the_original(tmp_path):
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(7, 2, 7, 7).double()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = []

    def recover(small, step):
        assert {id(p) for g in adam.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
        kept.append([adam.state[p]["exp_avg"].shape == p.shape for p in small.parameters() if p in adam.state])
        for _ in range(2):
            adam.zero_grad()
            small(x).square().mean().backward()
            adam.step()

    planning = functools.partial(bough.plan, minimum=2)
    done = iterate(model, x, bough.Budget(params="40%"), recover, steps=3, schedule=linear, optimizer=adam, planning=planning)
    whole = done.plan.original.params
    assert [s.plan.cost.params <= share * whole for s, share in zip(done.steps, linear(0.4, 3), strict=True)] == [True] * 3
    assert whole == sum(p.numel() for p in model.parameters())
    assert done.plan.cost.params == sum(p.numel() for p in done.model.parameters()) <= 0.4 * whole
    assert all(s.report.equal for s in done.steps)
    assert not kept[0]
    assert all(kept[1])
    assert all(kept[2])
    assert len(kept[2]) > 8
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    bough.save(done, tmp_path)
    again = bough.load(tmp_path, lambda: Net().double())
    assert torch.equal(again.eval()(x), done.model.eval()(x))


def test_a_budget_out_of_reach_is_told_before_anything_is_trained():
    with pytest.raises(BudgetError, match="can not be reached"):
        iterate(Net(), torch.randn(2, 2, 7, 7), bough.Budget(params=10), lambda model, step: pytest.fail("trained"))


OTHER_BUDGETS = {
    "energy": bough.Budget(energy="40%"),
    "size at a precision": bough.Budget(size="40%", precision="int8"),
    "peak memory at a precision": bough.Budget(peak_memory="60%", precision="int8"),
    "several": bough.Budget(params="60%", energy="50%", size="50%", precision="int8"),
}


@pytest.mark.parametrize("name", OTHER_BUDGETS)
def test_steps_to_costs_that_shapes_alone_do_not_say(name):
    """Energy, and bytes at a precision, fall step by step from the original's to what is asked."""
    budget, x = OTHER_BUDGETS[name], torch.randn(2, 4)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    done = iterate(net, x, budget, lambda model, step: None, steps=3)
    once = bough.plan(bough.trace(net, x), bough.score(bough.trace(net, x), "l2"), budget)
    limits = budget.limits(once.original)
    for field, limit in limits.items():
        costs = [s.plan.cost.to_dict()[field] for s in done.steps]
        assert costs == sorted(costs, reverse=True)
        assert limit < costs[0] < once.original.to_dict()[field]
        assert costs[-1] <= limit
    graph = bough.trace(net, x)
    fading = ProgressiveZeroing(graph, budget, steps=1, periods=2)
    sgd = torch.optim.SGD(net.parameters(), 0.0)
    attached = fading.attach(sgd)
    for _ in range(2):
        net(x).sum().backward()
        sgd.step()
    attached.remove()
    assert fading.done
    assert all(fading.plan.cost.to_dict()[field] <= limit for field, limit in limits.items())


def test_steps_of_an_original_that_does_not_say_are_told():
    cost = bough.Cost(1000, 200, 4000, 0, 0)
    for budget in (bough.Budget(energy="50%"), bough.Budget(size=100, precision="int8"), bough.Budget(latency=1.0)):
        with pytest.raises(BudgetError, match="original"):
            budgets(budget, cost, 2)
