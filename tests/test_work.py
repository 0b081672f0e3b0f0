"""What planning and cutting have to do grows as the model, and no faster: calls are counted, not seconds."""

import gc
import sys

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bough


class Chain(nn.Module):
    """`blocks` residual blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(blocks))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def traced(blocks: int) -> tuple[bough.Graph, dict]:
    graph = bough.trace(Chain(blocks), torch.randn(1, 8))
    return graph, bough.score(graph, bough.importance.Magnitude())


def planned(graph: bough.Graph, scores: dict) -> bough.Plan:
    return bough.plan(graph, scores, bough.Budget(macs="25%"), allocation="uniform")


def number_of_calls(blocks: int) -> int:
    """Return how many functions, of Python and of C, are called from a chain to its cut copy."""
    count = 0

    def counting(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        graph, scores = traced(blocks)
        bough.cut(graph.model, planned(graph, scores))
    finally:
        sys.setprofile(before)
    return count


def test_calls_grow_as_the_number_of_blocks():
    number_of_calls(2)  # imports
    small, middle, large = (number_of_calls(n) for n in (10, 20, 40))
    assert large - middle < 2.2 * (middle - small)


def test_planning_starts_no_collection_of_garbage():
    """A full collection goes through all objects of the process: 0.2 s, whatever the model."""
    graph, scores = traced(20)
    started = []
    thresholds = gc.get_threshold()
    gc.set_threshold(50, 1, 1)
    gc.collect()

    def note(phase: str, info: dict) -> None:
        started.append(info["generation"])

    gc.callbacks.append(note)
    try:
        started.clear()
        planned(graph, scores)
        during = list(started)
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*thresholds)
    assert len(during) < 10
    assert gc.isenabled()


class Summed(TorchDispatchMode):
    """Counts the elements that reductions go through."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name in ("aten::sum", "aten::linalg_vector_norm", "aten::isfinite"):
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_norms_go_through_each_weight_once():
    """NaN shows in the norms: looking for it before would read all weights twice."""
    model = Chain(4)
    graph = bough.trace(model, torch.randn(1, 8))
    with Summed() as summed:
        bough.score(graph, bough.importance.Magnitude())
    assert summed.elements <= sum(p.numel() for p in model.parameters())
