"""The independent oracle for typing rules: a cut model against its original with zeros written in from `plan.kept` alone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bough
from tests.zoo import randomize, to_double

LAYOUTS = {"tokens": (2, 6, 5), "rows": (4, 5), "image": (2, 3, 6, 6), "signal": (2, 3, 12), "volume": (2, 3, 4, 4, 4)}
_FEATURES = {"tokens": -1, "rows": -1, "image": 1, "signal": 1, "volume": 1}


def _producer(layout: str, units: int) -> nn.Module:
    match layout:
        case "image":
            return nn.Conv2d(3, units, 1)
        case "signal":
            return nn.Conv1d(3, units, 1)
        case "volume":
            return nn.Conv3d(3, units, 1)
        case _:
            return nn.Linear(5, units)


class Around(nn.Module):
    """A layer, an op on what it gives, and what takes the units away again: a layer, or a sum that has no weights.

    A layer has weights of its own for each unit, so it hides what the op makes of masked units; a sum shows it.
    """

    def __init__(self, op: Callable[[Tensor], Tensor], layout: str, units: int, consumer: str) -> None:
        super().__init__()
        self.a, self.op, self.consumer, self.dim = _producer(layout, units), op, consumer, _FEATURES[layout]
        if consumer == "layer":
            with torch.no_grad():
                y = op.double()(self._made(layout)) if isinstance(op, nn.Module) else op(self._made(layout))
            self.b = nn.Linear(y.shape[self.dim], 3)

    def _made(self, layout: str) -> Tensor:
        return copy.deepcopy(self.a).double()(torch.randn(LAYOUTS[layout], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(self.a(x)).movedim(self.dim, -1)
        match self.consumer:
            case "layer":
                return self.b(y)
            case "sum":
                return y.sum(-1)
            case _:
                return (y * y.roll(1, 0)).mean(-1)


def masked(model: nn.Module, plan: bough.Plan) -> nn.Module:
    """The original with every slice of a parameter that the plan removes at zero."""
    out = copy.deepcopy(model)
    parameters = dict(out.named_parameters())
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, kept in dims.items() if name in parameters else ():
                gone = [i for i in range(parameters[name].shape[dim]) if i not in set(kept)]
                parameters[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
    return out


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors a model gives for inputs as `trace` takes them."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        out = model(*given)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def ready(model: nn.Module, inputs: Any, seed: int = 0) -> tuple[nn.Module, Any]:
    """Random weights, float64, eval mode."""
    return randomize(model.eval(), seed), to_double(inputs)


def close(a: list[Tensor], b: list[Tensor]) -> None:
    """Raises where two lists of outputs are not the same within rounding of float64."""
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def check(model: nn.Module, inputs: Any, seed: int = 0, keep: float = 0.5) -> tuple[bough.Graph, bough.Plan | None]:
    """Cuts `model` (made `ready`) and holds it against its masked original, exact groups against plain zeros.

    Returns the graph and the plan; no plan where no group is free.
    """
    graph = bough.trace(model, inputs)
    if not graph.groups:
        return graph, None
    scores = bough.score(graph, bough.importance.Random(seed))
    plan = bough.plan(graph, scores, keep=keep)
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, inputs)
    assert report.dtype == "float64"
    assert report.max_error <= 1e-9 * max(report.scale, 1.0), f"{report}\n{graph}"
    if any(g.exact for g in graph.groups):
        exact = bough.plan(graph, scores, keep=keep, exact_only=True)
        if not exact.scales and not any(op.undefined for op in graph.ops):  # nor is zeroing units dividing by zero
            close(outputs(masked(model, exact), inputs), outputs(bough.cut(model, exact), inputs))
    return graph, plan
