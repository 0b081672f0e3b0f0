"""Budgets: what can be written, what it means, and that plans keep to it."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bough
from bough.cost import EnergyModel, Prices, closed_form, shown
from bough.errors import BudgetError
from bough.latency import required_points
from tests.zoo.small import ZOO

GRAPH = bough.trace(*ZOO["residual"]())
ORIGINAL = bough.Cost(1000, 200, 4000, 0, 800, stored=1400, latency=0.01, energy=0.002)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [("latency", "3 ms", 3e-3), ("latency", "500us", 5e-4), ("latency", "500 µs", 5e-4), ("latency", "2s", 2.0),
     ("latency", 0.25, 0.25), ("latency", "40%", 0.004), ("energy", "2 mJ", 2e-3), ("energy", "750 nJ", 7.5e-7),
     ("energy", "1 J", 1.0), ("energy", "25%", 5e-4), ("size", "256 KiB", 262144), ("peak_memory", "1 kB", 1000),
     ("params", "2.5 M", 2.5e6), ("macs", "1.2 GMACs", 1.2e9), ("macs", "1e-3 GMAC", 1e6)],
)  # fmt: skip
def test_what_bounds_mean(field, text, value):
    assert bough.Budget(**{field: text}).limits(ORIGINAL) == {field: pytest.approx(value)}


@pytest.mark.parametrize(
    ("bounds", "words"),
    [({"latency": "3 MiB"}, "unknown unit"), ({"latency": "3 mJ"}, "unknown unit"), ({"latency": "3 Ms"}, "unknown unit"),
     ({"energy": "3 ms"}, "unknown unit"), ({"energy": -1.0}, "leaves nothing"), ({"latency": "120%"}, "above 100%"),
     ({"size": "1 MB", "precision": "int7"}, "precision='int7' is unknown"), ({"precision": "int8"}, "bounds nothing")],
)  # fmt: skip
def test_what_can_not_be_read(bounds, words):
    with pytest.raises(BudgetError, match=words):
        bough.Budget(**bounds)


def test_a_size_at_a_precision_bounds_what_is_stored():
    assert bough.Budget(size="50%", precision="int8").limits(ORIGINAL) == {"stored": 700.0}
    assert bough.Budget(size="50%").limits(ORIGINAL) == {"size": 2000.0}


def by_hand(model, precision):
    """Bytes, tensor by tensor."""
    weight = {"float32": 4, "float16": 2, "int8": 1, "int4": 0.5}[precision]
    scale, other = (4, 4) if precision.startswith("int") else (0, weight)
    total = 0
    for t in model.state_dict().values():
        if not t.is_floating_point():
            total += t.numel() * t.element_size()
        elif t.dim() < 2:
            total += other * t.numel()
        else:
            total += weight * t.numel() + scale * len(t)
    return total


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("name", ["residual", "gated_attention"])
def test_stored_bytes_of_a_cut_model(name, precision):
    model, inputs = ZOO[name]()
    graph = bough.trace(model.eval(), inputs)
    assert Prices(precision).form(graph).cost().stored == by_hand(model, precision)
    scores = bough.score(graph, bough.importance.Random())
    plan = bough.plan(graph, scores, bough.Budget(size="60%", precision=precision), allocation="greedy")
    small = bough.cut(model, plan)
    assert plan.cost.stored == by_hand(small, precision) <= 0.6 * by_hand(model, precision)


@given(st.data())
def test_costs_of_many_plans_at_once_are_those_of_each_alone(data):
    form = closed_form(GRAPH)
    plans = [[data.draw(st.integers(1, int(n))) for n in form.sizes] for _ in range(3)]
    together = form.evaluate(plans)
    for i, counts in enumerate(plans):
        alone = form.cost(form.vector(dict(zip(form.names, counts, strict=True)))).to_dict()
        assert alone == {k: v[i] for k, v in together.items()}


def test_latency_needs_a_table():
    graph = bough.trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(1, 3))
    with pytest.raises(BudgetError, match=r"needs a table of times.*LatencyTable\.measure"):
        bough.plan(graph, bough.score(graph, bough.importance.Random()), bough.Budget(latency="1 ms"))


def timed(graph, seconds):
    """A table in which an op takes `seconds` of its widths, and any other op a microsecond."""
    points = {}
    for key, widths in required_points(graph):
        points.setdefault(key, {})[widths] = seconds(widths)
    return bough.LatencyTable("a chip", "eager", 8, 1e-6, 0.0, points)


def test_a_latency_that_is_overhead_says_so():
    """Nothing that is frozen, and no option of rounding, is to blame for time that no width changes; elsewhere it may be."""
    layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)]
    graph = bough.trace(nn.Sequential(*layers), torch.randn(1, 8), ignore=["0"])
    scores = bough.score(graph, bough.importance.Random())
    flat = timed(graph, lambda widths: 1e-5)
    with pytest.raises(BudgetError, match=r"32\.00 us of it is overhead of 5 ops.*drop=.*onnxruntime") as error:
        bough.plan(graph, scores, bough.Budget(latency="50%"), table=flat)
    assert "ignore" not in str(error.value)
    steep = timed(graph, lambda widths: 1e-6 * (sum(widths) or 64))
    with pytest.raises(BudgetError, match="lower minimum, round_to or ignore") as error:
        bough.plan(graph, scores, bough.Budget(latency="40%"), table=steep)
    assert "overhead" not in str(error.value)
    with pytest.raises(BudgetError, match="lower minimum, round_to or ignore"):  # of both, one may be met by widths
        bough.plan(graph, scores, bough.Budget(latency="50%", params="1%"), table=flat)


def test_several_bounds_and_energy_at_once_and_the_plan_says_what_they_stand_on():
    model, inputs = ZOO["residual"]()
    graph = bough.trace(model.eval(), inputs)
    scores = bough.score(graph, bough.importance.Random())
    budget = bough.Budget(energy="60%", peak_memory="90%", size="80%", precision="int8")
    plan = bough.plan(graph, scores, budget, allocation="greedy")
    limits = budget.limits(plan.original)
    assert limits.keys() == {"energy", "peak_memory", "stored"}
    assert all(plan.cost.to_dict()[k] <= limit for k, limit in limits.items())
    assert plan.original.energy == Prices(energy=EnergyModel.of("int8")).form(graph).cost().energy
    assert any("Horowitz" in n and "int8" in n and "not calibrated" in n for n in plan.notes)
    again = bough.Plan.from_json(plan.to_json())
    assert again == plan
    assert "not calibrated" in str(again)


def test_plans_written_before_there_were_such_costs_are_read():
    model, inputs = ZOO["residual"]()
    graph = bough.trace(model.eval(), inputs)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Random()), keep=0.5)
    data = json.loads(plan.to_json())
    assert data["cost"].keys() == {"params", "macs", "size", "activation_bytes", "peak_memory"}
    del data["notes"]
    assert bough.Plan.from_json(json.dumps(data)) == plan


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [("latency", 3.2e-3, "3.20 ms"), ("latency", 2.0, "2.00 s"), ("energy", 1.5e-6, "1.50 uJ"), ("macs", 1234.0, "1,234")],
)
def test_costs_for_people(field, value, text):
    assert shown(field, value) == text


class Chosen(nn.Module):
    """Looks rows up by indices, which are integers at any precision."""

    def __init__(self):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(10, 6), nn.Linear(6, 40), nn.Linear(40, 3)

    def forward(self, numbers):
        return self.down(self.up(self.words(numbers + 1)).relu())


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2), ("int8", 1), ("int4", 1)])
def test_activations_follow_the_precision(precision, size):
    """Counted by hand: 5 tokens, int64 indices before and after the addition, 6 + 40 + 40 + 3 floats of each."""
    numbers = torch.arange(5)
    graph = bough.trace(Chosen(), numbers)
    cost = Prices(precision).form(graph).cost()
    assert cost.activation_bytes == 5 * 8 + size * 5 * (6 + 40 + 40 + 3)
    assert cost.peak_memory == size * 5 * (40 + 40)  # the hidden layer before and after the ReLU
    kept = {g.name: 1 for g in graph.groups}
    small = bough.cut(graph.model, bough.plan(graph, bough.score(graph, bough.importance.Random()), keep=kept))
    form = Prices(precision).form(graph)
    assert form.cost(form.vector(kept)).peak_memory == Prices(precision).form(bough.trace(small, numbers)).cost().peak_memory


def test_complex_numbers_are_two():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    graph = bough.trace(Spectrum(), torch.randn(2, 6))
    assert Prices("int8").form(graph).cost().activation_bytes == 2 * 4 * 2 + 2 * 4
    assert Prices(None).form(graph).cost().activation_bytes == 4 * Prices("int8").form(graph).cost().activation_bytes


def test_a_budget_of_peak_memory_is_of_its_precision():
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(4, 8)
    graph = bough.trace(model, x)
    scores, full = bough.score(graph, bough.importance.Magnitude()), graph.cost().peak_memory
    plan = bough.plan(graph, scores, bough.Budget(peak_memory=full / 4, precision="int8"))
    assert not plan.kept
    assert plan.cost.peak_memory == full / 4
    half = bough.plan(graph, scores, bough.Budget(peak_memory="50%", precision="int8"))
    assert half.original.peak_memory == full / 4
    assert half.cost.peak_memory <= full / 8
    assert half.groups == bough.plan(graph, scores, bough.Budget(peak_memory="50%")).groups
    assert "stored, activation_bytes, peak_memory: bytes at int8" in str(half)
