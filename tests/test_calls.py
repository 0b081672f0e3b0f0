"""Several calls of a model: one set of types binds all of them, and each works after the cut as it did before."""

import copy
import json

import pytest
import torch
from torch import nn

import bough
from bough.calibration import traced_inputs
from bough.calls import as_calls
from bough.errors import ArgumentError, ConflictError, ExportError, PlanError, TraceError
from bough.importance.score import with_data_reached
from tests.test_cli import run


class MultiTask(nn.Module):
    """Two heads on one body; each task also has a branch of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.heads = nn.ModuleDict({n: nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, k)) for n, k in TASKS.items()})

    def forward(self, x, task="a"):
        return self.heads[task](self.body(x))

    def encode(self, x):
        return {"energy": self.body[:2](x).square().sum(-1)}

    def label(self, x):
        return self(x).argmax(-1)[0].item()

    def words(self, x):
        return f"class {self.label(x)}"


TASKS = {"a": 5, "b": 7}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MultiTask().eval()


@pytest.fixture
def x():
    return torch.randn(2, 8)


def half(model, calls):
    graph = bough.trace(model, calls)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
    return plan, bough.cut(model, plan)


def test_every_head_and_method_follows_the_body(model, x):
    """Of a head that only the second call takes, the input side follows the body, and its own units are cut."""
    calls = [bough.Call(x), bough.Call(torch.randn(3, 4, 8), task="b"), bough.Call(x, method="encode")]
    plan, small = half(model, calls)
    assert [plan.groups[n] for n in ("body.0", "body.2", "heads.a.0", "heads.b.0")] == [(16, 32), (12, 24), (6, 12), (6, 12)]
    assert small.heads["b"][0].weight.shape == (6, 12)
    report = bough.verify(model, small, plan, calls)
    assert report.equal
    assert report.calls == 3
    assert [o.call.partition(",")[0] for o in report.outputs] == ["call 1 of 3", "call 2 of 3", "call 3 of 3"]
    for call in calls:
        call(small)


def test_one_call_is_the_same_in_every_form(model, x):
    forms = [x, (x,), {"x": x}, bough.Call(x), [bough.Call(x)]]
    graphs = [bough.trace(model, form) for form in forms]
    assert len({tuple((g.name, g.size) for g in graph.groups) for graph in graphs}) == 1
    assert all(len(graph.calls) == len([r for r in graph.runs if not r.beside]) == 1 for graph in graphs)
    assert [c.kwargs for c in as_calls({"method": 1})] == [{"method": 1}]


def test_a_call_that_the_cut_breaks_is_named(model, x):
    """A plan from one call alone: the report of all calls names the other one."""
    calls = [bough.Call(x), bough.Call(x, task="b")]
    plan, small = half(model, calls)
    broken = copy.deepcopy(small)
    broken.heads["b"][2].bias.data += 1.0
    report = bough.verify(model, broken, plan, calls)
    assert not report.equal
    assert "call 2 of 2, forward(float32[2, 8], task='b')" in str(report)
    assert [o.equal for o in report.outputs] == [True, False]


def test_numbers_and_text(model, x):
    """What chooses a number or text keeps its units; numbers are compared, text is only run, and the report says so."""
    calls = [bough.Call(x, method="encode"), bough.Call(x, method="label"), bough.Call(x, method="words")]
    plan, small = half(model, calls)
    report = bough.verify(model, small, plan, calls)
    assert report.equal
    named = [o.call.partition(",")[0] for o in report.outputs]
    assert [n for n in named if " on the inputs of " not in n] == ["call 1 of 3", "call 2 of 3"]
    assert report.only_run == ("call 3 of 3, words(float32[2, 8])",)
    assert "it was only run" in str(report)
    assert small.heads["a"][2].out_features == 5


def test_each_call_starts_from_the_same_state():
    """What one call writes in place or sets on the model is undone before the next, in trace, check and verify alike."""

    class Streaming(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.steps = nn.Linear(4, 16), nn.Linear(16, 3), 0
            self.register_buffer("last", torch.zeros(1, 3))

        def forward(self, x):
            y = self.b(self.a(x).relu()) + self.last
            self.last.copy_(y[:1])
            self.steps += 1
            return y * self.steps

    def twice(model, x):
        return [model(x), model(x)]

    model, x = Streaming().eval(), torch.randn(2, 4)
    calls = [bough.Call(x), bough.Call(x), bough.Call(x, method=twice)]
    plan, small = half(model, calls)
    assert bough.verify(model, small, plan, calls).equal
    assert model.steps == small.steps == 0
    assert not model.last.any()
    assert not small.last.any()


def test_a_module_of_the_model_may_be_called(model, x):
    calls = [bough.Call(x), bough.Call(x, method="body"), bough.Call(x, method="body.0.forward")]
    assert bough.trace(model, calls).groups[0].name == "heads.a.0"  # what is returned stays whole


def test_what_can_not_be_called(model, x):
    with pytest.raises(TraceError, match=r"MultiTask has no method 'decode', which Call\(method=...\) names"):
        bough.trace(model, [bough.Call(x), bough.Call(x, method="decode")])
    with pytest.raises(TraceError, match=r"can not make call 2 of 2, forward\(float32\[2, 8\], task='c'\): KeyError"):
        bough.trace(model, [bough.Call(x), bough.Call(x, task="c")])
    with pytest.raises(ArgumentError, match="holds calls and a Tensor"):
        bough.trace(model, [bough.Call(x), x])
    with pytest.raises(ArgumentError, match="method must be the name of a method"):
        bough.Call(x, method=3)
    plan, _ = half(model, x)
    with pytest.raises(ExportError, match="rebuild exports one call of forward"):
        bough.rebuild(model, plan, [bough.Call(x), bough.Call(x, task="b")])


def test_costs_are_of_the_first_call(model, x):
    one, two = bough.trace(model, x), bough.trace(model, [bough.Call(x), bough.Call(x, task="b")])
    assert one.cost() == two.cost()
    assert bough.trace(model, [bough.Call(x, task="b"), bough.Call(x)]).cost() != one.cost()


def test_a_call_may_contradict_what_another_allows():
    """An integer that only the second call reads ties or freezes the groups of the first."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.b(self.a(x).relu())

        def pooled(self, x):
            return self.a(x).relu().reshape(-1, int("3"), int("4")).amax(1).sum(-1)

    model, x = Net().eval(), torch.randn(2, 4)
    assert half(model, x)[1].a.out_features == 6
    graph = bough.trace(model, [bough.Call(x), bough.Call(x, method="pooled")])
    scores = bough.score(graph, "l2")
    with pytest.raises(ConflictError):
        bough.plan(graph, scores, keep=0.5, on_conflict="raise")


def both(model, x):
    return model(x), model(x, task="b")


def batches(n=4):
    return [(torch.randn(16, 8), torch.zeros(16).long()) for _ in range(n)]


def test_data_is_passed_through_the_first_call(model, x):
    """Units that only another call reads can not be scored by data: `score` says so, `prune` leaves them and says so."""
    calls, data = [bough.Call(x, task="b"), bough.Call(x)], batches()
    with pytest.raises(PlanError, match=r"only call 2 of 2, forward\(float32\[2, 8\]\), reads the units of 'heads.a.0'"):
        bough.score(bough.trace(model, calls), "wanda", data)
    result = bough.prune(model, calls, bough.Budget(macs="50%"), data=data)
    assert result.report.equal
    assert result.report.calls == 2
    assert result.model.heads["a"][0].out_features == 12
    assert "first call alone" in str(result.choice)
    assert result.refit.skipped["heads.a.0.weight"].startswith("only another call reads it")
    assert {layer.name for layer in result.refit.layers} >= {"heads.b.0.weight", "body.2.weight"}


@pytest.mark.parametrize(
    ("method", "layer", "group"),
    [
        ("forward", "heads.a.2", "heads.a.0"), ("body", "body.2", "body.0"), ("heads.a.forward", "heads.a.2", "heads.a.0"),
        (both, "heads.b.2", "heads.b.0"),
    ],
    ids=["forward", "module", "method of a module", "function"],
)  # fmt: skip
def test_criteria_see_what_the_first_call_reads(model, method, layer, group):
    """Wanda against activations taken by a hook of torch."""
    call = bough.Call(torch.randn(2, 24 if method == "heads.a.forward" else 8), method=method)
    data = [torch.randn(16, call.args[0].shape[1]) for _ in range(3)]
    seen, reader = [], model.get_submodule(layer)
    with torch.no_grad(), reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].double())):
        for part in data:
            call.given((part,), {})(model)
    expected = reader.weight.double().abs().sum(0) * torch.cat(seen).square().sum(0).sqrt()
    graph = with_data_reached(bough.trace(model, call), ["wanda"])
    scores = torch.from_numpy(bough.score(graph, "wanda", data)[group])
    assert torch.allclose(scores / scores.sum(), expected.detach() / expected.detach().sum(), rtol=1e-6)


def test_arguments_without_a_tensor_stay_as_traced(model, x):
    """A label in the batch is not taken for the task."""
    graph = bough.trace(model, bough.Call(x, task="b"))
    batch = batches(1)[0]
    args, kwargs = traced_inputs(graph, batch)
    assert torch.equal(args[0], batch[0])
    assert kwargs == {"task": "b"}
    assert traced_inputs(graph, {"x": batch[0], "task": "a"})[1] == {"task": "a"}
    assert traced_inputs(bough.trace(model, (x, "b")), batch)[0][1] == "b"


class Attention(nn.Module):
    """Two layers of attention whose scale is the default one, and a second way to call them."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(12, 24) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.head = nn.Linear(12, 3)

    def forward(self, x, layers=2):
        for qkv, out in list(zip(self.qkv, self.out, strict=True))[:layers]:
            q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in qkv(x).chunk(3, -1))
            x = x + out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x)


def test_a_scale_is_folded_once_for_all_calls():
    """Attention's 1/sqrt(head_dim), which each call derives from the cut width, goes into the shared weights once."""
    torch.manual_seed(0)
    model = Attention().eval()
    calls = [bough.Call(torch.randn(2, 5, 12)), bough.Call(torch.randn(1, 9, 12)), bough.Call(torch.randn(3, 4, 12), layers=1)]
    one, plan = (half(model, c)[0] for c in (calls[0], calls))
    assert plan.groups == one.groups
    assert plan.groups["qkv.0/head_dim"] == (2, 4)
    assert set(plan.scales) == set(one.scales) != set()
    assert bough.verify(model, bough.cut(model, plan), plan, calls).equal


def test_iterate_and_compare_take_calls(model, x):
    calls = [bough.Call(x), bough.Call(x, task="b")]
    done = bough.iterate(model, calls, bough.Budget(params="50%"), lambda small, step: None, steps=2)
    assert all(step.report.calls == 2 for step in done.steps)
    found = bough.compare(
        model, calls, ["l2", "wanda"], [bough.Budget(macs="60%")], lambda m: float(m(x).sum().detach()), data=batches()
    )
    assert [row.error for row in found.rows] == [None] * len(found.rows)


def test_a_checkpoint_of_several_calls(model, x, tmp_path):
    result = bough.prune(model, [bough.Call(x), bough.Call(x, task="b")], bough.Budget(params="50%"))
    bough.save(result, tmp_path)
    loaded = bough.load(tmp_path, MultiTask)
    assert torch.equal(loaded(x, task="b"), result.model(x, task="b"))
    assert bough.Plan.from_json(result.plan.to_json()) == result.plan


def build():
    """A model for the command line, with its calls."""
    torch.manual_seed(0)
    x = torch.randn(2, 8)
    return MultiTask().eval(), [bough.Call(x), bough.Call(x, task="b"), bough.Call(x, method="encode")]


def test_the_command_line(tmp_path):
    out = json.loads(run("prune", "tests.test_calls:build", "--budget", "params=60%", "--json"))
    assert out["verification"]["calls"] == 3
    assert out["verification"]["equal"]
    shapes = ("--input-shape", "2,5", "--input-shape", "7,5")
    out = json.loads(run("prune", "tests.test_cli_models:instance", *shapes, "--budget", "params=60%", "--json"))
    assert [o["call"] for o in out["verification"]["outputs"]] == [
        f"call {i} of 2, forward(float32[{n}, 5])" for i, n in ((1, 2), (2, 7))
    ]


def test_data_where_no_call_reads_a_head(model, x):
    """A head that was typed beside its sibling has no data to be scored by: it keeps its own width, and follows the body."""
    result = bough.prune(model, x, bough.Budget(macs="50%"), data=batches())
    assert result.report.equal
    assert result.plan.groups["body.2"][0] < 24
    assert result.model.heads["b"][0].out_features == 12
    assert result.model(x, task="b").shape == (2, 7)
