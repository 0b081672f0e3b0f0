"""`cut_`: parameters and buffers stay the same objects; where one can not, nothing changes and it is told."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bough
from bough.errors import PlanError


def half(model: nn.Module, x: torch.Tensor) -> bough.Plan:
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    assert plan.kept
    return plan


def mlp(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *middle, nn.Linear(8, 2)).double()


def convs() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(54, 2)
    ).double()


def normed() -> nn.Sequential:
    model = mlp(parametrizations.weight_norm(nn.Linear(8, 8).double()), nn.ReLU())
    parametrizations.spectral_norm(model[0])
    return model


def tied() -> nn.Sequential:
    model = mlp(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    model[4].weight = model[2].weight
    return model


def frozen() -> nn.Sequential:
    model = convs()
    for p in model[:3].parameters():
        p.requires_grad_(False)
    return model


FLAT, IMAGE = torch.randn(3, 4).double(), torch.randn(3, 3, 7, 7).double()
MODELS = {
    "linear": (mlp, FLAT),
    "convolutions": (convs, IMAGE),
    "channels last": (lambda: convs().to(memory_format=torch.channels_last), IMAGE),
    "parametrized": (normed, FLAT),
    "tied": (tied, FLAT),
    "frozen": (frozen, IMAGE),
}


def references(model: nn.Module) -> dict[str, torch.Tensor]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return dict(named)


def looks(t: torch.Tensor) -> tuple[object, ...]:
    channels_last = t.is_contiguous(memory_format=torch.channels_last) if t.ndim == 4 else None
    return t.requires_grad, t.is_leaf, t.dtype, type(t), channels_last


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_stays_the_same_object_and_equals_that_of_a_cut_copy(name):
    make, x = MODELS[name]
    model = make()
    plan = half(model, x)
    model(x).sum().backward()
    before, expected = references(model), bough.cut(model, plan)
    flags = {n: looks(t) for n, t in before.items()}
    assert bough.cut_(model, plan) is model
    for n, t in references(model).items():
        assert t is before[n]
        assert torch.equal(t, references(expected)[n])
        assert t.grad is None
        assert looks(t) == flags[n]
    assert str(model) == str(expected)
    model(x).sum().backward()
    assert all(
        (p.grad is not None) == p.requires_grad and (p.grad is None or p.grad.shape == p.shape) for p in model.parameters()
    )


def test_what_is_held_elsewhere_is_the_cut_parameter():
    model = mlp()
    shared, plan = nn.Linear(8, 2).double(), half(model, FLAT)
    shared.weight = model[2].weight
    averaged = [p.detach() for p in model.parameters()]
    bough.cut_(model, plan)
    assert shared.weight is model[2].weight
    assert shared.weight.shape == (2, 4)
    assert averaged[0].shape == (8, 4)  # what shares memory only is not the parameter


def test_an_old_graph_may_still_be_alive():
    model = mlp()
    plan = half(model, FLAT)
    loss = model(FLAT).square().sum()
    bough.cut_(model, plan)
    model(FLAT).sum().backward()
    assert model[0].weight.grad.shape == (4, 4)
    del loss


def test_hooks_on_gradients_stay():
    model, seen = mlp(), []
    plan = half(model, FLAT)
    model[0].weight.register_hook(lambda g: seen.append(("gradient", g.shape)))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(("accumulated", p.grad.shape)))
    model[0].weight.tag = "kept"
    bough.cut_(model, plan)
    model(FLAT).sum().backward()
    assert seen == [("gradient", (4, 4)), ("accumulated", (4, 4))]
    assert model[0].weight.tag == "kept"


def test_sparse_gradients():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Linear(8, 2)), torch.tensor([[1, 2]])
    plan = half(model, x)
    model(x).sum().backward()
    weight = model[0].weight
    bough.cut_(model, plan)
    assert model[0].weight is weight
    assert weight.grad is None
    model(x).sum().backward()
    assert weight.grad.is_sparse
    assert weight.grad.shape == (9, 4)


@pytest.mark.parametrize("inside", [False, True])
def test_inference_tensors_and_inference_mode(inside):
    with torch.inference_mode():
        model = mlp()
    plan = half(model, FLAT)
    expected = bough.cut(model, plan)
    weight = model[0].weight
    with torch.inference_mode(inside):
        bough.cut_(model, plan)
    assert model[0].weight is weight
    with torch.inference_mode():
        assert torch.equal(model(FLAT), expected(FLAT))


class Fixed(nn.Parameter):
    """A parameter that lets nobody change its memory."""

    data = property(lambda self: torch.Tensor.data.__get__(self), lambda self, value: self.refuse())

    def refuse(self) -> None:
        raise RuntimeError("its memory is fixed")


class Strict(nn.Linear):
    """A layer that lets nobody set its width."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "in_features" and name in self.__dict__:
            raise AttributeError("in_features is constant")
        super().__setattr__(name, value)


def fixed() -> nn.Module:
    model = convs()
    model[5].weight = Fixed(model[5].weight)
    return model


def strict() -> nn.Module:
    model = convs()
    model[5] = Strict(54, 2).double()
    return model


@pytest.mark.parametrize(("make", "error", "message"), [
    (fixed, PlanError, r"5\.weight \(Fixed\) can not be cut in place: its memory is fixed. Nothing was changed; use bough.cut"),
    (strict, AttributeError, "in_features is constant"),
])  # fmt: skip
def test_a_failure_midway_leaves_all_as_it_was(make, error, message):
    model = make()
    plan = half(model, IMAGE)
    model(IMAGE).sum().backward()
    before, values = references(model), copy.deepcopy(model.state_dict())
    text, gradients = str(model), [p.grad for p in model.parameters()]
    with pytest.raises(error, match=message):
        bough.cut_(model, plan)
    assert str(model) == text
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(t is before[n] for n, t in references(model).items())
    assert all(torch.equal(t, values[n]) for n, t in model.state_dict().items())
    model(IMAGE).sum().backward()


def test_a_damaged_plan_is_told_before_anything_changes():
    model = mlp()
    plan = half(model, FLAT)
    plan.kept["2.weight"] = {1: [0, 99]}
    with pytest.raises(PlanError, match=r"damaged: of dim 1 of 2\.weight, of shape \[2, 8\], it keeps \[0, 99\]"):
        bough.cut_(model, plan)
    assert model[0].weight.shape == (8, 4)


def test_nothing_keeps_the_old_model_alive():
    model = mlp()
    plan = half(model, FLAT)
    small = bough.cut(model, plan)
    alive = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert alive() is None
    assert small[0].out_features == 4


def test_a_plan_for_another_model_changes_nothing():
    plan, other = half(mlp(), FLAT), mlp(nn.Linear(8, 8))
    before = str(other)
    with pytest.raises(PlanError, match="made for another model"):
        bough.cut_(other, plan)
    assert str(other) == before
