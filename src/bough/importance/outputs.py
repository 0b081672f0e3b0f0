"""How much the outputs of consumers matter: their scale behind a batch norm, and the variance of what comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bough.graph import Graph, OpRecord
from bough.importance.data import Data, Sums
from bough.importance.moments import Moments, Products
from bough.importance.readings import Reading
from bough.tracing.flow import LAYERS, Flow, channel_scale
from bough.tracing.taps import Tap, tapped, undisturbed


def relatively(graph: Graph, data: Data, made: Mapping[Reading, Moments | Products]) -> dict[Reading, Moments | Products]:
    """Moments whose weights are scaled such that E|x w|^2 is a share of the variance of what comes of x w; of its mean square
    where it does not vary, and 0 where it is 0.

    That is the sum it is added to, or else the output itself, behind a batch norm where one follows. Of a product of
    activations, the inner products of its terms become shares of its mean square.
    """
    flow, sums = Flow(graph), Sums()
    layers = [r for r, m in made.items() if isinstance(m, Moments) and graph.ops[r.op].name in LAYERS]
    ends = {r: _end(flow, graph.ops[r.op]) for r in layers}

    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        dim = 1 if graph.ops[op.index].name != "linear" and tensors[0].dim() > 2 and op.index in channels else -1
        y = tensors[0].detach().double().movedim(dim, -1)
        y = y.reshape(-1, y.shape[-1])
        sums.plus(f"{op.index} mean", y.sum(0))
        sums.plus(f"{op.index} square", y.square().sum(0))
        sums.plus(f"{op.index} count", len(y))

    channels = {end.index for r, end in ends.items() if graph.ops[r.op].name != "linear"}
    taps = [Tap(i, read, results=True) for i in dict.fromkeys(e.index for e in ends.values())]
    with torch.no_grad(), undisturbed(graph.model), tapped(graph, taps):
        for batch in data.stream(graph, sums, "variances of outputs"):
            data.run(graph, batch)
    result = {r: _shares(m) if isinstance(m, Products) else m for r, m in made.items()}
    for reading, end in ends.items():
        found, n = made[reading], sums[f"{end.index} count"]
        assert isinstance(found, Moments)
        power = (sums[f"{end.index} square"] / n).sum()
        variance = power - (sums[f"{end.index} mean"] / n).square().sum()
        scale = variance if variance > 1e-12 * power else power  # what does not vary has no share of its variance
        weight = found.weight / scale.sqrt() if scale > 0 else torch.zeros_like(found.weight)
        norm = flow.norm(graph.ops[reading.op])
        if norm is not None:
            weight = weight * channel_scale(graph, norm).double().reshape(len(weight), 1, -1)
        result[reading] = replace(found, weight=weight, biased=found.biased or norm is not None)
    return result


def _shares(found: Products) -> Products:
    total = found.inner.sum()
    return replace(found, inner=found.inner / total) if total > 0 else found


def _end(flow: Flow, op: OpRecord) -> OpRecord:
    added = flow.added(op)
    return added[0] if added else flow.norm(op) or op
