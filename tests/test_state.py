"""Models that keep state between calls: after a cut, several calls in a row give what those of the masked original give."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bough
from bough.errors import PlanError
from bough.graph import model_tensor
from bough.tracing.capture.execution import model_tensors


class Streaming(nn.Module):
    """Assigns a buffer again in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = nn.Conv1d(4, 16, 1), nn.Conv1d(32, 8, 1), nn.Linear(8, 2)
        self.register_buffer("prev", torch.zeros(1, 16, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = torch.cat([y, self.prev], 1)
        self.prev = y.detach()
        return self.head(self.c(z).relu().mean(-1))


class StatefulLstm(nn.Module):
    def __init__(self, hidden: Any = None) -> None:
        super().__init__()
        self.proj, self.rnn, self.head = nn.Linear(4, 12), nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 3)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.rnn(self.proj(x.transpose(1, 2)), self.hidden)
        return self.head(y)


class Cells(nn.Module):
    """Keeps a list of tensors, of which each call replaces the entries."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(24, 16), nn.GRUCell(16, 12)])
        self.head = nn.Linear(12, 3)
        self.states = [torch.zeros(1, 16), torch.zeros(1, 12)]

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for i, cell in enumerate(self.cells):
            self.states[i] = x = cell(x, self.states[i])
        return self.head(x)


class Named(nn.Module):
    """Keeps tensors in a dict, one under a key with a dot, and in an object of a class of its own."""

    class Memory:
        def __init__(self) -> None:
            self.value, self.calls = torch.zeros(1, 20), 0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 16), nn.Linear(16, 20), nn.Linear(20, 3)
        self.kept, self.memory = {"layer.a": torch.zeros(1, 16)}, self.Memory()

    def forward(self, x: Tensor) -> Tensor:
        self.kept["layer.a"] = 0.5 * self.kept["layer.a"] + self.a(x.flatten(1)).relu()
        self.memory.value = 0.5 * self.memory.value + self.b(self.kept["layer.a"]).relu()
        self.memory.calls += 1
        return self.c(self.memory.value)


class Ring(nn.Module):
    """Keeps the last activations in a tensor attribute and in a deque."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.ring, self.past = torch.zeros(4, 1, 16), deque([torch.zeros(1, 12)] * 3, maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        self.ring = torch.cat([self.ring[1:], self.a(x.flatten(1)).relu()[None]])
        self.past.append(self.b(self.ring.mean(0)).relu())
        return self.c(sum(self.past))


class Running(nn.Module):
    """Sums in place, in buffers of which one is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 16), nn.Linear(16, 3)
        self.register_buffer("total", torch.zeros(16))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1))
        self.total += y.mean(0)
        self.count += 1
        return self.b((y - self.total / self.count).relu() + self.total)


class Norm(nn.Module):
    """A batch norm by hand that assigns its statistics again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2))
        self.var = 0.9 * self.var + 0.1 * x.var((0, 2), unbiased=False)
        scale = (self.weight / (self.var + 1e-5).sqrt())[:, None]
        return (x - self.mean[:, None]) * scale + self.bias[:, None]


class Momentum(nn.Module):
    """An encoder that follows another: `update` says how `forward` changes its weights."""

    def __init__(self, update: Callable[[nn.Parameter, nn.Parameter], None]) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
        self.key = copy.deepcopy(self.query)
        for p in self.key.parameters():
            p.data.mul_(0.5)
            p.requires_grad_(False)
        self.update = update

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for q, k in zip(self.query.parameters(), self.key.parameters(), strict=True):
                self.update(q, k)
        return self.query(x.flatten(1)), self.key(x.flatten(1))


def replaced(q: nn.Parameter, k: nn.Parameter) -> None:
    k.data = k.data * 0.9 + q.data * 0.1


def in_place(q: nn.Parameter, k: nn.Parameter) -> None:
    k.data.mul_(0.9).add_(q.data, alpha=0.1)


def copied(q: nn.Parameter, k: nn.Parameter) -> None:
    k.copy_(torch.lerp(k, q, 0.1))


class Feedback(nn.Module):
    """Has no state before its first call, which takes another path than those after it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.back, self.head = nn.Linear(24, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.prev: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1)).relu()
        self.prev = y if self.prev is None else y + self.back(self.prev).tanh()
        return self.head(self.prev)


class Alternating(nn.Module):
    """Takes turns between two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.left, self.right, self.b = nn.Linear(24, 16), nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        branch = self.left if self.calls % 2 == 0 else self.right
        self.calls += 1
        return self.b(branch(self.a(x.flatten(1)).relu()).relu())


class Cache(nn.Module):
    """Attention over the keys and values of all calls so far."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out, self.dim = nn.Linear(6, 16), nn.Linear(6, 28), nn.Linear(12, 3), 16
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).split([self.dim, self.kv.out_features - self.dim], -1)
        if self.cache:
            k, v = torch.cat([self.cache["k"], k], 1), torch.cat([self.cache["v"], v], 1)
        self.cache.update(k=k, v=v)
        return self.out((self.q(x) @ k.transpose(1, 2)).softmax(-1) @ v)


class Slots(nn.Module):
    """Writes each call's activations to the next slot of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.at = nn.Linear(24, 16), nn.Linear(16 * 5, 3), 0
        self.register_buffer("slots", torch.zeros(5, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.slots[self.at] = self.a(x.flatten(1)).relu()
        self.at = (self.at + 1) % 5
        return self.b(self.slots.transpose(0, 1).flatten(1))


class Clamped(nn.Linear):
    """Projects its own weights in each call, as constrained layers do."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "reassigned buffer": Streaming,
    "lstm with a tuple": lambda: StatefulLstm((torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))),
    "lstm without state before the first call": StatefulLstm,
    "list of states": Cells,
    "dict and object": Named,
    "ring and deque": Ring,
    "running sums": Running,
    "norm by hand": lambda: nn.Sequential(nn.Conv1d(4, 16, 1), Norm(16), nn.ReLU(), nn.Conv1d(16, 3, 1)),
    "momentum encoder, data replaced": lambda: Momentum(replaced),
    "momentum encoder, in place": lambda: Momentum(in_place),
    "momentum encoder, copied": lambda: Momentum(copied),
    "no state before the first call": Feedback,
    "branches that take turns": Alternating,
    "cache of keys and values": Cache,
    "slots of a buffer": Slots,
    "constrained weights": lambda: nn.Sequential(nn.Flatten(), Clamped(24, 16), nn.ReLU(), Clamped(16, 3)),
}  # fmt: skip
X = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))


def flat(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def inputs(calls: int = 6) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(X.shape, generator=generator) for _ in range(calls))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor, _, _ in model_tensors(model)}


@pytest.mark.parametrize("name", MODELS)
def test_calls_in_a_row_equal_those_of_the_masked_original(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    before = tensors_of(model)
    graph = bough.trace(model, X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert sum(k < n for k, n in plan.groups.values()) == len(plan.groups) > 0, "every group is cut"
    assert not plan.renormalizing
    small, full = bough.cut(model, plan), bough.mask(model, plan)
    report = bough.verify(model, small, plan, X)
    assert report.equal
    assert report.calls == 2, "the call, and the same three times in a row"
    with torch.no_grad():
        for x in inputs():
            for a, b in zip(flat(full(x)), flat(small(x)), strict=True):
                assert torch.allclose(a, b, atol=1e-5)
    after = tensors_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before), "nothing changed the model"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_ran_before_it_is_pruned_goes_on_from_its_state(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for x in inputs(2):
            model(x)
    graph = bough.trace(model, X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    small = bough.cut_(copy.deepcopy(model), plan)
    for state, dims in plan.kept.items():
        for dim, indices in dims.items():
            value = model_tensor(model, state).detach().index_select(dim, torch.tensor(indices))
            assert len(dims) > 1 or torch.equal(value, model_tensor(small, state))
    assert bough.verify(model, small, plan, X).equal


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_fits_a_model_that_has_not_run_yet(name: str, tmp_path: Any) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return MODELS[name]()

    model = build().eval()
    with torch.no_grad():
        model(X)
    result = bough.prune(model, X, bough.Budget(params="60%"))
    bough.save(result, tmp_path / "small")
    loaded = bough.load(tmp_path / "small", build).eval()
    with torch.no_grad():
        for x in inputs():
            loaded(x)


@pytest.mark.parametrize("data", [True, False], ids=["with data", "without"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_refits_leave_the_state_as_it_was(name: str, data: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    before = tensors_of(model)
    result = bough.prune(model, X, bough.Budget(params="60%"), data=list(inputs()) if data else None)
    after = tensors_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    with torch.no_grad():
        for x in inputs():
            result.model(x)


def test_verify_finds_a_difference_of_a_later_call() -> None:
    torch.manual_seed(0)
    model = Feedback().eval()
    graph = bough.trace(model, X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    small = bough.cut(model, plan)
    with torch.no_grad():
        small.back.bias += 1.0  # the first call does not read it
    report = bough.verify(model, small, plan, X)
    assert not report.equal
    assert [o.path for o in report.outputs if not o.equal] == ["[1]", "[2]"]
    assert "call 2 of 2, 3 times in a row forward" in str(report)


def test_what_no_later_call_reads_is_no_state() -> None:
    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.features = super().forward(x)
            return self.features

    graph = bough.trace(nn.Sequential(Noting(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    assert len(graph.calls) == len(graph.runs) == 1
    assert graph.groups


def test_a_call_that_can_not_be_repeated_is_noted() -> None:
    class Once(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if hasattr(self, "done"):
                raise RuntimeError("reset me")
            self.done = True
            return super().forward(x)

    model = nn.Sequential(Once(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = bough.trace(model, torch.randn(1, 4))
    assert [g.name for g in graph.groups] == ["0"]
    assert any("can not be made again on the same inputs: RuntimeError: reset me" in n for n in graph.notes)
    assert bough.prune(model, torch.randn(1, 4), bough.Budget(params="60%")).report.equal


def test_a_run_on_real_values_leaves_parameters_as_they_were() -> None:
    torch.manual_seed(0)
    for update in (replaced, in_place, copied):
        model = Momentum(update).eval()
        before = tensors_of(model)
        graph = bough.trace(model, X, real=True)
        assert graph.groups
        assert all(torch.equal(before[n], t) for n, t in tensors_of(model).items())


def test_state_of_another_shape_is_frozen_with_the_reason() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
            self.kept = torch.zeros(1, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) + self.kept[:, :8]
            self.kept = torch.cat([y, y], 1)
            return self.c(self.b(y).relu())

    graph = bough.trace(Growing(), torch.randn(1, 4))
    assert [g.name for g in graph.groups] == ["b"]
    assert any("forward gives kept another shape" in f.reason for f in graph.frozen)


def test_a_parameter_of_another_shape_is_frozen_with_the_reason() -> None:
    class Narrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
            self.gain = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) * self.gain.data[:8]
            self.gain.data = torch.cat([self.gain.data, self.gain.data])
            return self.c(self.b(y).relu())

    model = Narrowing()
    graph = bough.trace(model, torch.randn(1, 4))
    assert [g.name for g in graph.groups] == ["b"]
    assert any("data of another shape" in f.reason for f in graph.frozen)
    assert model.gain.shape == (8,)


def test_a_plan_does_not_fit_state_of_another_width() -> None:
    model = StatefulLstm((torch.zeros(1, 1, 16), torch.zeros(1, 1, 16)))
    graph = bough.trace(model, X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    model.hidden = (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    with pytest.raises(PlanError, match=r"hidden\[0\] has shape \[1, 1, 4\]"):
        bough.cut(model, plan)
    model.hidden = (torch.zeros(1, 7, 16), torch.zeros(1, 7, 16))  # of a batch of another size
    assert bough.cut(model, plan).hidden[0].shape == (1, 7, 8)


@pytest.mark.parametrize("ran", [True, False])
@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm"])
def test_a_hooked_norm_loads_whether_it_ran_or_not(norm: str, ran: bool, tmp_path: Any) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        hooked = getattr(nn.utils, norm)
        return nn.Sequential(hooked(nn.Conv1d(4, 16, 3)), nn.ReLU(), hooked(nn.Conv1d(16, 3, 1))).eval()

    model = build()
    if ran:
        with torch.no_grad():
            model(X)
    result = bough.prune(model, X, bough.Budget(macs="50%"))
    bough.save(result, tmp_path / "small")
    assert torch.allclose(bough.load(tmp_path / "small", build).eval()(X), result.model(X), atol=1e-6)


class Graphs(nn.Module):
    """Graph convolutions with a sparse adjacency matrix, given or held."""

    def __init__(self, adjacency: Tensor | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        adjacency = self.adjacency if adjacency is None else adjacency
        return self.c((adjacency @ self.b(torch.sparse.mm(adjacency, self.a(x)).relu())).relu())


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("held", [True, False], ids=["buffer", "input"])
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr", "to_dense"])
def test_sparse_adjacency_is_cut_as_a_dense_one(form: str, held: bool) -> None:
    torch.manual_seed(0)
    adjacency, x = getattr((torch.rand(9, 9) < 0.3).float(), form)(), torch.randn(9, 6)
    inputs = (x,) if held else (x, adjacency)
    model = Graphs(adjacency if held else None).eval()
    graph = bough.trace(model, inputs)
    assert [(g.name, g.size) for g in graph.groups] == [("a", 16), ("b", 12)]
    batches = [(torch.randn(9, 6), *inputs[1:]) for _ in range(2)]
    result = bough.prune(model, inputs, bough.Budget(params="50%"), data=batches)
    assert result.report.equal
    assert result.refit is not None


@pytest.mark.parametrize("made_inside", [True, False])
@pytest.mark.parametrize("pruned_inside", [True, False])
def test_inference_mode_changes_nothing(made_inside: bool, pruned_inside: bool) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv1d(4, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 12, 1), nn.ReLU(), nn.Conv1d(12, 3, 1)
        )
        net[1].running_mean.normal_()
        return net

    def plan_of(model: nn.Module, x: Tensor) -> dict[str, Any]:
        result = bough.prune(model, x, bough.Budget(macs="50%"), importance="l2")
        assert result.report.equal
        return result.plan.kept

    with torch.inference_mode(made_inside):
        model, x = build().eval(), X.clone()
    with torch.inference_mode(pruned_inside):
        kept = plan_of(model, x)
        assert bough.prune(model, x, bough.Budget(macs="50%")).refit is not None  # on inputs made by gradients
    assert kept == plan_of(build().eval(), X)


def test_local_response_norm_freezes_channels_with_the_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(5), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = bough.trace(net, torch.randn(1, 3, 8, 8))
    assert [g.name for g in graph.groups] == ["2"]
    assert "a window slides over this axis" in next(f.reason for f in graph.frozen if f.name == "0")
