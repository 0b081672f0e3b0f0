"""How much memory the stages make and touch, counted per op: the same on every machine."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bough
from bough.cost import Cost
from bough.cutting.slicing import Slicer, plainly
from bough.errors import PlanError
from bough.importance import GroupNorm, Magnitude
from bough.planning.plan import Plan, Scale

MB = 1 << 20


class Made(TorchDispatchMode):
    """Notes the bytes of each storage that ops inside make."""

    def __enter__(self):
        self.sizes = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.device.type != "meta" and t.untyped_storage()._cdata not in given:
                self.sizes.append(t.untyped_storage().nbytes())
        return result


class Tagger(nn.Module):
    """An embedding of 16 MB, and a layer."""

    def __init__(self, words=1 << 16, width=64):
        super().__init__()
        self.words, self.inner, self.out = nn.Embedding(words, width), nn.Linear(width, 128), nn.Linear(128, 4)

    def forward(self, x):
        return self.out(self.inner(self.words(x)).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("criterion", [Magnitude(p=1), Magnitude(p=2), GroupNorm(p=2)])
def test_scoring_makes_no_tensor_as_large_as_a_large_weight(criterion, dtype):
    model = Tagger().to(dtype)
    graph = bough.trace(model, torch.zeros(1, 3, dtype=torch.int64))
    with Made() as made:
        scores = bough.score(graph, criterion)
    assert {len(s) for s in scores.values()} == {64, 128}
    assert max(made.sizes) <= MB
    assert sum(made.sizes) <= 2 * MB


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 3e38), (torch.float16, 6e4), (torch.bfloat16, 3e38)])
def test_weights_are_finite_though_their_sum_is_not(dtype, large):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    graph = bough.trace(model, torch.zeros(2, 6, dtype=dtype))
    nn.init.constant_(model[2].weight, large)
    assert bough.score(graph, "l1")["0"].shape == (16,)
    model[2].weight.data[1, 2] = -torch.inf
    with pytest.raises(PlanError, match=r"2\.weight is not finite: it holds NaN or infinity"):
        bough.score(graph, "l1")


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("scaled", [False, True])
def test_slices_are_those_of_plain_indexing(dims, scaled):
    torch.manual_seed(0)
    weight = torch.randn(70, 90, 110, dtype=torch.float64)
    kept = {d: sorted(torch.randperm(weight.shape[d])[: 40 + d].tolist()) for d in dims}
    scales = (Scale("w", 1, (3, 5, 88), 0.3), Scale("w", 1, tuple(range(90)), 3.0)) if scaled else ()
    expected = weight.clone()
    for scale in scales:
        expected[:, list(scale.indices)] *= scale.factor
    for d in dims:
        expected = expected.index_select(d, torch.tensor(kept[d]))
    cost = Cost(0, 0, 0, 0, 0)
    slicer = Slicer(Plan("", {"w": kept}, {}, {}, scales, (), {}, cost, cost))
    with plainly():
        assert torch.equal(slicer("w", weight, fresh=True), expected)
        assert slicer("w", weight.to("meta"), fresh=True).shape == expected.shape


class Attention(nn.Module):
    """Its default scale is 1 / sqrt(head dim): where head dims go, the cut folds a factor into a weight."""

    def __init__(self, width=1024, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_cutting_makes_nothing_larger_than_what_it_keeps():
    model = nn.Sequential(nn.Linear(1024, 1024), Attention(), nn.Linear(1024, 8))
    graph = bough.trace(model, torch.zeros(1, 5, 1024))
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
    assert plan.scales
    with Made() as made:
        small = bough.cut(model, plan)
    assert max(made.sizes) <= max(p.numel() * p.element_size() for p in small.parameters())
