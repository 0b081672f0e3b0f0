"""What taps show is what hooks see, on other data than the traced, with and without gradients; the model stays as it was."""

import pytest
import torch
from torch import nn

import bough
from bough.calibration import Tap, preserve_state, tapped
from bough.errors import TraceError
from tests.traced import traced

KINDS = {nn.Linear: "linear", nn.Conv2d: "convolution", nn.ConvTranspose2d: "convolution"}


def hooked(graph):
    """The ops that are one call of a layer: (op, module)."""
    modules = dict(graph.model.named_modules())
    names = [op.module for op in graph.ops if KINDS.get(type(modules.get(op.module))) == op.name]
    return [
        (op, modules[op.module])
        for op in graph.ops
        if KINDS.get(type(modules.get(op.module))) == op.name and names.count(op.module) == 1
    ]


@pytest.mark.parametrize(
    "name", ["mlp", "residual", "encoder", "gated_attention", "channel_shuffle", "transposed", "one_channel"]
)
@pytest.mark.parametrize("gradients", [False, True])
def test_taps_show_what_hooks_see(name, gradients):
    model, graph, data = traced(name, 5)
    sites = hooked(graph)
    assert len(sites) >= 2
    seen, shown = {}, {}
    handles = []
    for op, module in sites:

        def hook(module, args, result, at=op.index):
            seen[at] = [args[0].detach().clone(), result.detach().clone()]
            if args[0].requires_grad and gradients:
                args[0].register_hook(lambda g: seen[at].append(g))

        handles.append(module.register_forward_hook(hook))
    with torch.set_grad_enabled(gradients):
        expected = model(data)
        if gradients:
            expected.square().mean().backward()
    for handle in handles:
        handle.remove()

    def arguments(op, tensors):
        shown[op.index] = [tensors[0].detach().clone()]
        if tensors[0].requires_grad:
            tensors[0].register_hook(lambda g: shown[op.index].append(g))

    def results(op, tensors):
        shown[op.index].insert(1, tensors[0].detach().clone())

    taps = [t for op, _ in sites for t in (Tap(op.index, arguments), Tap(op.index, results, results=True))]
    with torch.set_grad_enabled(gradients), preserve_state(model), tapped(graph, taps) as running:
        actual = running(data)
        if gradients:
            actual.square().mean().backward()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert shown.keys() == seen.keys()
    for at in seen:
        torch.testing.assert_close(shown[at], seen[at], rtol=0, atol=1e-12)
    if gradients:
        assert sum(len(v) == 3 for v in seen.values()) >= len(seen) - 1


def test_several_calls_of_the_model_show_each():
    model, graph, data = traced("mlp", 5)
    sizes = []
    with torch.no_grad(), tapped(graph, [Tap(0, lambda op, tensors: sizes.append(len(tensors[0])))]):
        model(data)
        model(data[:2])
        with pytest.raises(RuntimeError):
            model(data[:, :3])
        model(data[:1])
    model(data)
    assert sizes == [5, 2, 5, 1]


def test_what_a_tap_returns_is_used_instead():
    model, graph, data = traced("mlp", 5)

    def doubled(op, tensors):
        return [2 * tensors[0], *tensors[1:]]

    with torch.no_grad(), tapped(graph, [Tap(0, doubled)]):
        actual = model(data)
    torch.testing.assert_close(actual, model(2 * data).detach())


def test_the_model_stays_as_it_was():
    model, graph, data = traced("residual", 5)
    model.train()
    model.bn0.eval()
    model.head.weight.requires_grad_(False)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    names = set(model.__dict__)
    random = torch.get_rng_state()
    with preserve_state(model), tapped(graph, [Tap(3, lambda op, tensors: None)]):
        assert not any(m.training for m in model.modules())
        model.train()
        model.zero_grad()
        torch.randn(3)
        model.head.weight.requires_grad_(True)
        model(data).sum().backward()
    assert set(model.__dict__) == names
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert not model.head.weight.requires_grad
    assert model.head.weight.grad is None
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Turning(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.relu(self.a(x) if len(x) < 8 else self.b(x)))


def test_another_path_is_told_with_both_places():
    graph = bough.trace(Turning(), torch.randn(2, 4))
    with torch.no_grad(), tapped(graph, []) as model:
        model(torch.randn(3, 4))
    with torch.no_grad(), tapped(graph, []) as model, pytest.raises(TraceError, match=r"another path.*linear.*test_taps\.py"):
        model(torch.randn(9, 4)[:, :4])


class Shorter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return torch.relu(x) + self.b(x) if len(x) < 8 else x


def test_an_op_left_out_is_told():
    graph = bough.trace(Shorter(), torch.randn(2, 4))
    with torch.no_grad(), tapped(graph, []) as model, pytest.raises(TraceError, match=r"does without"):
        model(torch.randn(9, 4))


def test_a_trace_in_training_mode_fits_a_run_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    graph = bough.trace(model, torch.randn(3, 4))
    (last,) = [op.index for op in graph.ops if op.module == "4"]
    seen = []
    with torch.no_grad(), preserve_state(model), tapped(graph, [Tap(last, lambda op, tensors: seen.append(tensors[0]))]):
        model(torch.ones(2, 4))
        expected = model[:4](torch.ones(2, 4))
    assert torch.equal(seen[0], expected)
