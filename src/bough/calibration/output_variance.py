"""Scale the weights of consumers by the variance of their outputs, so that errors become shares of that variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bough.calibration.consumer_inputs import InputAxis
from bough.calibration.data import Data
from bough.calibration.moments import InnerProducts, Moments
from bough.calibration.passes import tapped_pass
from bough.calibration.sums import Sums
from bough.calibration.taps import Tap
from bough.graph import Graph, OpRecord
from bough.tracing.flow import LAYERS, Flow, channel_scale


def scale_by_output_variance(
    graph: Graph, data: Data, moments: Mapping[InputAxis, Moments | InnerProducts]
) -> dict[InputAxis, Moments | InnerProducts]:
    """Return moments whose weights are scaled such that E|x w|^2 is a share of the variance of the output.

    The output is the sum to which x w is added, or else x w itself, after a batch norm if one follows. If the output does not
    vary, its mean square takes the place of the variance; if that is 0 too, the weights become 0. Inner products of a product
    of activations become shares of its mean square.

    Args:
        graph: of the model, which stays as it is.
        data: calibration data; one pass.
        moments: by input axis.

    Raises:
        PlanError: as `Data.stream`.
        TraceError: on this data the model takes another path than the traced one.
    """
    flow, sums = Flow(graph), Sums()
    layers = [axis for axis, m in moments.items() if isinstance(m, Moments) and graph.ops[axis.op].name in LAYERS]
    output_op = {axis: _output_op(flow, graph.ops[axis.op]) for axis in layers}
    has_channels = {op.index for axis, op in output_op.items() if graph.ops[axis.op].name != "linear"}

    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        dim = 1 if graph.ops[op.index].name != "linear" and tensors[0].dim() > 2 and op.index in has_channels else -1
        y = tensors[0].detach().double().movedim(dim, -1)
        y = y.reshape(-1, y.shape[-1])
        sums.plus(f"{op.index} mean", y.sum(0))
        sums.plus(f"{op.index} square", y.square().sum(0))
        sums.plus(f"{op.index} count", len(y))

    taps = [Tap(i, read, results=True) for i in dict.fromkeys(op.index for op in output_op.values())]
    tapped_pass(graph, data, taps, sums, "variances of outputs")
    scaled = {axis: _as_shares(m) if isinstance(m, InnerProducts) else m for axis, m in moments.items()}
    for axis, op in output_op.items():
        layer, count = moments[axis], sums[f"{op.index} count"]
        assert isinstance(layer, Moments)
        power = (sums[f"{op.index} square"] / count).sum()
        variance = power - (sums[f"{op.index} mean"] / count).square().sum()
        scale = variance if variance > 1e-12 * power else power
        weight = layer.weight / scale.sqrt() if scale > 0 else torch.zeros_like(layer.weight)
        norm = flow.norm(graph.ops[axis.op])
        if norm is not None:
            weight = weight * channel_scale(graph, norm).double().reshape(len(weight), 1, -1)
        scaled[axis] = replace(layer, weight=weight, biased=layer.biased or norm is not None)
    return scaled


def _as_shares(products: InnerProducts) -> InnerProducts:
    """Return inner products divided by their sum, the mean square of the product of activations."""
    total = products.inner.sum()
    return replace(products, inner=products.inner / total) if total > 0 else products


def _output_op(flow: Flow, op: OpRecord) -> OpRecord:
    """Return the operator whose result stands for a layer's output: the addition after it, its batch norm, or itself."""
    added = flow.added(op)
    return added[0] if added else flow.norm(op) or op
