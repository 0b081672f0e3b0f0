"""Scale the weights of consumers by the sensitivity of the model's output to theirs: the diagonal of Gauss-Newton.

The diagonal is estimated from gradients of random linear combinations of the model's outputs (Hutchinson, 1990).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bough.calibration.consumer_inputs import InputAxis
from bough.calibration.data import Data
from bough.calibration.moments import InnerProducts, Moments
from bough.calibration.sums import SAMPLES, Sums
from bough.calibration.taps import Tap, preserve_state, tapped
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.tracing.capture.tree import output_tensors
from bough.tracing.flow import LAYERS, Flow

MomentsByAxis = Mapping[InputAxis, Moments | InnerProducts]


def output_sensitivities(graph: Graph, data: Data, layers: Iterable[int], probes: int) -> dict[int, Tensor]:
    """Return the sensitivity of the model's output z to the outputs y of layers: E|dz/dy|^2, float64 [outputs] by operator.

    |dz/dy|^2 is summed over positions and averaged over samples. z is all that the model returns, each tensor divided by its
    standard deviation. |dz/dy|^2 is the mean of (v . dz/dy)^2 over standard normal v; no labels are needed.

    Source: Hutchinson, 1990 (estimator of the diagonal).

    Args:
        graph: of the model, which stays as it is.
        data: calibration data; one pass.
        layers: indices of linear layers and convolutions in `graph.ops`.
        probes: number of vectors v per batch; one backward pass each.

    Raises:
        PlanError: no output of the model depends on its inputs through differentiable operators.
        TraceError: on this data the model takes another path than the traced one.
    """
    sums, outputs = Sums(), _LayerOutputs(graph, layers)
    with preserve_state(graph.model, graph.written), tapped(graph, outputs.taps), torch.enable_grad():
        for p in graph.model.parameters():
            p.requires_grad_(p.is_floating_point())
        for batch in data.stream(graph, sums, f"sensitivities {probes}"):
            model_outputs = [z for z in output_tensors(data.run(graph, batch)).values() if z.requires_grad]
            if not model_outputs:
                raise PlanError("nothing that the model returns has a gradient (does it run under no_grad?): set probes=0")
            layer_edges = outputs.take_edges()
            if layer_edges:  # empty if no layer ran with a gradient on this batch
                _accumulate(sums, model_outputs, layer_edges, probes)
    return {int(i): total / (sums.samples * probes) for i, total in sums.items() if i != SAMPLES}


def _accumulate(
    sums: Sums, model_outputs: Sequence[Tensor], layer_edges: Sequence[tuple[OpRecord, GradientEdge]], probes: int
) -> None:
    """Add the squared gradients of `probes` random combinations of the model's outputs with respect to layer outputs."""
    edges = [edge for _, edge in layer_edges]
    generator = torch.Generator().manual_seed(sums.batch)  # so that a resumed pass, and other processes, draw the same numbers
    for k in range(probes):
        v = [torch.randn(z.shape, generator=generator).to(z) * _inverse_deviation(z) for z in model_outputs]
        gradients = torch.autograd.grad(model_outputs, edges, v, retain_graph=k + 1 < probes, allow_unused=True)
        for (op, _), g in zip(layer_edges, gradients, strict=True):
            if g is not None:
                g = g.movedim(g.dim() + 1 - len(op.arguments[1]), 0).flatten(1)
                sums.plus(str(op.index), g.abs().double().square().sum(1))


class _LayerOutputs:
    """Gradient edges of the outputs of layers, taken before the first operator that reads an output can overwrite it."""

    def __init__(self, graph: Graph, layers: Iterable[int]) -> None:
        self._edges: list[tuple[OpRecord, GradientEdge]] = []
        self._unread: list[tuple[OpRecord, Tensor]] = []  # outputs that no operator reads have a gradient after the run
        self.taps: list[Tap] = []
        flow = Flow(graph)
        for op in (graph.ops[i] for i in dict.fromkeys(layers)):
            readers = flow.readers.get(op.values[0])
            if readers:
                first, argument = min(readers, key=lambda r: r[0].index)
                self.taps.append(Tap(first.index, partial(self._read_argument, layer=op, argument=argument)))
            else:
                self.taps.append(Tap(op.index, self._read_result, results=True))

    def _read_argument(self, op: OpRecord, tensors: Sequence[Tensor], layer: OpRecord, argument: int) -> None:
        if tensors[argument].requires_grad:
            self._edges.append((layer, get_gradient_edge(tensors[argument])))

    def _read_result(self, op: OpRecord, tensors: Sequence[Tensor]) -> None:
        self._unread.append((op, tensors[0]))

    def take_edges(self) -> list[tuple[OpRecord, GradientEdge]]:
        """Return the edges since the last call."""
        edges = [*self._edges, *((op, get_gradient_edge(y)) for op, y in self._unread if y.requires_grad)]
        self._edges.clear()
        self._unread.clear()
        return edges


def scale_by_output_sensitivity(
    graph: Graph, data: Data, moments: MomentsByAxis, probes: int, *, keep_totals: bool
) -> dict[InputAxis, Moments | InnerProducts]:
    """Return moments whose weights are scaled such that E|x w|^2 is, to first order, the squared change of the model's output.

    Args:
        graph: of the model, which stays as it is.
        data: calibration data; one pass.
        moments: by input axis; those of linear layers and convolutions are scaled.
        probes: number of random probes per batch.
        keep_totals: whether each layer's total E|x w|^2 stays, so that only the distribution over its outputs changes.

    Raises:
        PlanError, TraceError: as `output_sensitivities`.
    """
    layers = {axis: m for axis, m in moments.items() if isinstance(m, Moments) and graph.ops[axis.op].name in LAYERS}
    sensitivities = output_sensitivities(graph, data, (axis.op for axis in layers), probes) if layers else {}
    scaled = dict(moments)
    for axis, m in layers.items():
        if axis.op not in sensitivities:
            continue
        scale = sensitivities[axis.op].to(m.weight.device).sqrt()
        weight = m.weight * scale.reshape(len(m.weight), 1, -1)
        if keep_totals:
            before, after = (_mean_square(m, w) for w in (m.weight, weight))
            if after > 1e-12 * _mean_square(replace(m, biased=False), weight):
                weight = weight * (before / after).sqrt()
        scaled[axis] = replace(m, weight=weight)
    return scaled


def _mean_square(m: Moments, weight: Tensor) -> Tensor:
    """Return E|x w|^2, of x - E[x] if the consumer has a bias."""
    return (weight * ((m.covariance if m.biased else m.second) @ weight)).sum()


def _inverse_deviation(z: Tensor) -> Tensor:
    """Return 1 / standard deviation of z; 0 for a constant, which carries no information."""
    deviation = z.detach().to(torch.promote_types(z.dtype, torch.float32)).std(correction=0)
    return torch.where(deviation > 0, 1 / deviation, 0.0)
