"""What a plan sets on a module is there in every copy of the cut module, and in nothing of the original."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from einops import rearrange
from einops.layers.torch import EinMix, Rearrange, Reduce
from torch import nn

import bough
from tests.zoo import randomize

WIDTH, HEADS = 24, 4


class Attention(nn.Module):
    """Self-attention whose heads are split and joined by `layout`."""

    def __init__(self, layout):
        super().__init__()
        self.enter, self.leave, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.layout = layout

    def forward(self, x):
        x = self.enter(x)
        q, k, v = (self.layout(f(x)) for f in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return self.leave(x + self.out(mixed.transpose(1, 2).flatten(2)))


class Layout(nn.Module):
    """Reads the number of heads from `holder`, by `read`."""

    def __init__(self, holder, read):
        super().__init__()
        self.holder, self.read = holder, read

    def forward(self, x):
        return x.unflatten(-1, (self.read(self.holder), -1)).transpose(1, 2)


class Functional(Layout):
    def forward(self, x):
        return rearrange(x, "b n (h d) -> b h n d", h=self.read(self.holder))


Sizes = namedtuple("Sizes", "width heads")


class Derived(nn.Module):
    """Pickles and copies its constructor's argument only, from which it computes twice the number of heads."""

    def __init__(self, per_side):
        super().__init__()
        self.per_side = per_side
        self.heads = per_side * 2

    def __reduce__(self):
        return Derived, (self.per_side,)

    def forward(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Single:
    """The same object in every copy."""

    def __init__(self):
        self.heads = HEADS

    def __deepcopy__(self, memo):
        return self


def heads(holder):
    return holder.heads


LAYOUTS = {  # name: (layout, whether heads can be cut)
    "einops layer": (lambda: Rearrange("b n (h d) -> b h n d", h=HEADS), True),
    "einops layers in a row": (
        lambda: nn.Sequential(Rearrange("b n (h d) -> b n h d", h=HEADS), Rearrange("b n h d -> b h n d")),
        True,
    ),
    "einops function": (lambda: Functional(Sizes(WIDTH, HEADS), heads), True),
    "named tuple": (lambda: Layout(Sizes(WIDTH, HEADS), heads), True),
    "shape": (lambda: Layout(torch.Size((WIDTH, HEADS)), lambda size: size[1]), True),
    "computed when copied": (lambda: Derived(HEADS // 2), False),
    "one object for all copies": (lambda: Layout(Single(), heads), False),
}


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("keep", [0.5, 0.75])
@pytest.mark.parametrize("name", LAYOUTS)
def test_heads(name, keep, called_before):
    make, free = LAYOUTS[name]
    net, x = randomize(Attention(make())).eval(), torch.randn(2, 7, 5, dtype=torch.float64)
    expected = copy.deepcopy(net)(x)
    if called_before:
        net(x)
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=keep)
    assert any(g.kind == "head" for g in graph.groups) == free
    if free:
        assert plan.groups["q/head"] == (round(HEADS * keep), HEADS)
    small = bough.cut(net, plan)
    assert bough.verify(net, small, plan, x).equal
    assert torch.equal(copy.deepcopy(small)(x), small(x))
    if "function" not in name and name != "shape":  # a lambda can not be pickled
        assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))
    assert not any(m.training for m in small.modules())
    assert torch.equal(net(x), expected)
    again = bough.cut(net, plan)
    bough.cut_(net, plan)
    assert torch.equal(copy.deepcopy(net)(x), again(x))


def test_the_heads_that_a_copy_would_lose_are_named():
    net = randomize(Attention(Derived(HEADS // 2))).eval()
    reasons = [f.reason for f in bough.trace(net, torch.randn(2, 7, 5, dtype=torch.float64)).frozen]
    assert any("a copy of the module does not take over" in r and "heads" in r and "layout" in r for r in reasons)


class Pooled(nn.Module):
    """Means over the parts of a layer's output, and a mixing layer, both by einops."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH // HEADS, 3)
        self.mix = EinMix("b n (h c) -> b n (h o)", weight_shape="h c o", bias_shape="h o", h=HEADS, c=WIDTH // HEADS, o=7)
        self.pool, self.last = Reduce("b n (h d) -> b n h", "max", h=HEADS), nn.Linear(HEADS, 2)

    def forward(self, x):
        x = self.mix(self.enter(x).relu())
        return self.last(self.pool(x))


@pytest.mark.parametrize("keep", [0.5, 0.75])
def test_layers_that_reduce_and_mix(keep):
    net, x = randomize(Pooled()).eval(), torch.randn(2, 7, 5, dtype=torch.float64)
    graph = bough.trace(net, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=keep)
    assert any(kept < total for kept, total in plan.groups.values())
    small = bough.cut(net, plan)
    assert bough.verify(net, small, plan, x).equal
    assert torch.equal(copy.deepcopy(small)(x), small(x))


class Odd(nn.Module):
    """What copies of modules have to get right: an own state, shared containers, cycles, hooks that are methods."""

    def __init__(self, shared):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.out = nn.Linear(8, 2)
        self.shared, self.again, self.nothing = shared, {"shared": shared}, {}
        self.inner[0].register_forward_hook(self.note)
        self.inner[1].__dict__["owner"] = self
        self.lost = "taken out of the state"

    def note(self, module, args, result):
        self.shared.append(type(module).__name__)

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "lost"}

    def __setstate__(self, state):
        super().__setstate__({**state, "restored": True})

    def forward(self, x):
        return self.out(self.inner(x))


def test_a_copy_has_the_state_ties_and_cycles_that_deepcopy_gives():
    model = Odd([])
    x = torch.randn(1, 4)
    graph = bough.trace(model, x)
    small = bough.cut(model, bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5))
    assert small.restored
    assert not hasattr(small, "lost")
    assert small.inner[1].owner is small
    assert small.again["shared"] is small.shared
    assert small.shared is not model.shared
    small(x)
    assert (small.shared, model.shared) == (["Linear"], [])
    assert small.nothing == {}
    assert small.nothing is not model.nothing
    assert small.__dict__.keys() == copy.deepcopy(model).__dict__.keys()
