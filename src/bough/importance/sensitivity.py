"""How much what a model gives depends on what its layers give: the diagonal of Gauss-Newton, by random mixtures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.importance.data import SAMPLES, Data, Sums
from bough.importance.moments import Moments, Products
from bough.importance.readings import Reading
from bough.tracing.flow import LAYERS, Flow
from bough.tracing.taps import Tap, tapped, undisturbed
from bough.tracing.tree import output_tensors

Made = Mapping[Reading, Moments | Products]


def sensitivities(graph: Graph, data: Data, layers: Iterable[int], probes: int) -> dict[int, Tensor]:
    """[outputs] of each of some linear layers and convolutions, by op: |dz/dy|^2 summed over positions, a mean over samples.

    z is all that the model returns, each tensor as a multiple of its standard deviation. |dz/dy|^2 is the mean of
    (v . dz/dy)^2 over normal v (Hutchinson, 1990), of which `probes` are drawn for each batch: a backward pass each, no labels.

    Raises:
        PlanError: nothing that the model returns depends on what it is given by differentiable ops.
    """
    sums, outputs = Sums(), _Outputs(graph, layers)
    with undisturbed(graph.model), tapped(graph, outputs.taps), torch.enable_grad():
        for p in graph.model.parameters():
            p.requires_grad_(p.is_floating_point())
        for batch in data.stream(graph, sums, f"sensitivities {probes}"):
            given = [z for z in output_tensors(data.run(graph, batch)).values() if z.requires_grad]
            if not given:
                raise PlanError("nothing that the model returns has a gradient (does it run under no_grad?): set probes=0")
            seen = outputs.taken()
            if not seen:  # none of the layers ran with a gradient on this batch
                continue
            edges = [edge for _, edge in seen]
            drawn = torch.Generator().manual_seed(int(sums.get(SAMPLES, 0)))  # a pass that is taken up draws the same
            for k in range(probes):
                mixed = [torch.randn(z.shape, generator=drawn).to(z) * _scale(z) for z in given]
                found = torch.autograd.grad(given, edges, mixed, retain_graph=k + 1 < probes, allow_unused=True)
                for (op, _), g in zip(seen, found, strict=True):
                    if g is not None:
                        g = g.movedim(g.dim() + 1 - len(op.arguments[1]), 0).flatten(1)
                        sums.plus(str(op.index), g.abs().double().square().sum(1))
    return {int(i): found / (sums.samples * probes) for i, found in sums.items() if i != SAMPLES}


class _Outputs:
    """What layers give in a run with gradients, as it was before the op that reads it first may have written over it."""

    def __init__(self, graph: Graph, layers: Iterable[int]) -> None:
        self._seen: list[tuple[OpRecord, GradientEdge]] = []
        self._last: list[tuple[OpRecord, Tensor]] = []  # what no op reads: it has a gradient once the model has returned
        self.taps: list[Tap] = []
        flow = Flow(graph)
        for op in (graph.ops[i] for i in dict.fromkeys(layers)):
            readers = flow.readers.get(op.values[0])
            if readers:
                first, argument = min(readers, key=lambda r: r[0].index)
                self.taps.append(Tap(first.index, partial(self._read, layer=op, argument=argument)))
            else:
                self.taps.append(Tap(op.index, self._end, results=True))

    def _read(self, op: OpRecord, tensors: Sequence[Tensor], layer: OpRecord, argument: int) -> None:
        if tensors[argument].requires_grad:
            self._seen.append((layer, get_gradient_edge(tensors[argument])))

    def _end(self, op: OpRecord, tensors: Sequence[Tensor]) -> None:
        self._last.append((op, tensors[0]))

    def taken(self) -> list[tuple[OpRecord, GradientEdge]]:
        """Since it was last asked."""
        seen = [*self._seen, *((op, get_gradient_edge(y)) for op, y in self._last if y.requires_grad)]
        self._seen.clear()
        self._last.clear()
        return seen


def sensitively(graph: Graph, data: Data, made: Made, probes: int, relative: bool) -> dict[Reading, Moments | Products]:
    """Moments whose weights are scaled such that E|x w|^2 is, to first order, the squared change of what the model returns.

    `relative`: a layer's E|x w|^2 in total stays as it is, only what each of its outputs has of it becomes another.
    """
    layers = {r: m for r, m in made.items() if isinstance(m, Moments) and graph.ops[r.op].name in LAYERS}
    found = sensitivities(graph, data, (r.op for r in layers), probes) if layers else {}
    result = dict(made)
    for reading, m in layers.items():
        if reading.op not in found:
            continue
        scale = found[reading.op].to(m.weight.device).sqrt()
        weight = m.weight * scale.reshape(len(m.weight), 1, -1)
        if relative:
            before, after = (_total(m, w) for w in (m.weight, weight))
            weight = weight * (before / after).sqrt() if after > 1e-12 * _total(replace(m, biased=False), weight) else weight
        result[reading] = replace(m, weight=weight)
    return result


def _total(m: Moments, weight: Tensor) -> Tensor:
    return (weight * ((m.covariance if m.biased else m.second) @ weight)).sum()


def _scale(z: Tensor) -> Tensor:
    spread = z.detach().to(torch.promote_types(z.dtype, torch.float32)).std(correction=0)
    return torch.where(spread > 0, 1 / spread, 0.0)  # what is constant tells nothing
