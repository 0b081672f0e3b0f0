"""Models that tests cut to half and refit."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import bough
from tests.zoo import randomize
from tests.zoo.small import ZOO

SKIPPED = {"weight_norm_hook", "weight_norm_parametrization"}


class Heads(nn.Module):
    """Attention with 4 query heads on `kv` key-value heads."""

    def __init__(self, kv):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 3 * kv), nn.Linear(6, 3 * kv)
        self.o, self.head = nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x):
        b, n, _ = x.shape
        q, k = (f(x).view(b, n, -1, 3).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(b, n, k.shape[1], -1).transpose(1, 2)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.o(y.transpose(1, 2).reshape(b, n, -1)))


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Convs(nn.Module):
    """Strided, depthwise, pointwise, grouped; a batch norm takes the constant of one without bias."""

    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.p, self.norm = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.g, self.t = nn.Conv2d(6, 4, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x):
        x = F.relu(self.norm(self.p(F.relu(self.d(F.relu(self.a(x)))))))
        return self.t(F.relu(self.g(x)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(14, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.d(F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], -1))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x)


def twice(model, *made):
    """Makes the second half of what each named layer makes the same as the first."""
    with torch.no_grad():
        for name in made:
            for p in model.get_submodule(name).parameters():
                half = p.shape[0] // 2
                p[half:] = p[:half]
    return model


CASES = {  # name: (model, layers with twins, group to halve, shape of a sample)
    "chain": (Chain, ("a",), "a", (5,)),
    "convolutions": (Convs, ("a", "d"), "a", (3, 12, 12)),
    "concatenation": (Concatenated, ("a",), "a", (5,)),
    "feed-forward": (Residual, ("up",), "up", (5,)),
    "heads": (lambda: Heads(4), ("q", "k", "v"), "q/head", (7, 6)),
    "grouped queries": (lambda: Heads(2), ("q", "k", "v"), None, (7, 6)),
}


def cut_to_half(model, group, example):
    graph = bough.trace(model, example)
    group = group or next(g.name for g in graph.groups if g.kind == "head" and g.size == 2)
    found = graph.group(group)
    scores = {g.name: np.arange(g.size, 0, -1.0) for g in graph.groups}
    plan = bough.plan(graph, scores, keep={group: found.size // 2})
    return bough.cut(model, plan), plan


def batches(shape, n=4, size=24):
    torch.manual_seed(1)
    return [torch.randn(size, *shape, dtype=torch.float64) for _ in range(n)]


def halved(name, n=3):
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    shape = (16, *inputs.shape[1:])
    floats = inputs.is_floating_point()
    data = [torch.randn(shape, dtype=torch.float64) if floats else torch.randint(0, 20, shape) for _ in range(n)]
    model = randomize(model.eval())
    graph = bough.trace(model, data[0])
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    return model, bough.cut(model, plan), plan, data
