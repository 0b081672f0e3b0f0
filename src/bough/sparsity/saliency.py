"""Scores of single weights: magnitude, SNIP (weight times gradient), Wanda (weight times norm of its input)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bough.calibration import Data, InputAxis, Loss, Sums, Tap, batch_size, loss_gradients, preserve_state, tapped_pass, unfold
from bough.graph import Graph, OpRecord
from bough.sparsity.weight_matrices import WeightMatrix


def magnitudes(graph: Graph, matrices: Sequence[WeightMatrix]) -> list[Tensor]:
    """Return |w| of each matrix, [blocks, inputs, outputs], in float32 at least."""
    return [_wide(m.gather(graph.tensor(m.name))).abs() for m in matrices]


def snip_scores(graph: Graph, matrices: Sequence[WeightMatrix], data: Data, loss: Loss) -> list[Tensor]:
    """Return |w dL/dw| of each matrix, with the gradient of the loss over all data, in eval mode.

    Source: Lee et al., 2019 (SNIP).

    Raises:
        PlanError: as `Data.stream` and `loss_gradients`.
    """
    names, sums, taken = list(dict.fromkeys(m.name for m in matrices)), Sums(), data.loss(graph, loss)
    with preserve_state(graph.model, graph.written):
        for batch in data.stream(graph, sums, "SNIP"):
            for name, gradient in zip(names, loss_gradients(graph, taken, batch, names), strict=True):
                sums.plus(name, gradient * batch_size(batch), gradient.dtype)
    products = {name: (_wide(graph.tensor(name).detach()) * sums[name].to(graph.tensor(name).device)).abs() for name in names}
    return [m.gather(products[m.name]) for m in matrices]


def wanda_scores(graph: Graph, matrices: Sequence[WeightMatrix], data: Data, sites: int) -> list[Tensor]:
    """Return |w| sqrt(E[x^2]) of each matrix, x the input that the weight multiplies (for convolutions, per kernel position).

    Source: Sun et al., 2024 (Wanda).

    Args:
        graph, matrices: of the model.
        data: calibration data.
        sites: number of output positions per sample at which a convolution is sampled.

    Raises:
        PlanError: as `Data.stream`.
    """
    sums = Sums()

    def tap(axis: InputAxis) -> Tap:
        def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
            for i, x in enumerate(unfold(axis, op, tensors, sites).x):
                sums.plus(f"{axis.key} {i} square", x.double().square().sum(0))
                sums.plus(f"{axis.key} {i} count", len(x))

        return Tap(axis.op, read)

    tapped_pass(graph, data, [tap(axis) for m in matrices for axis in m.axes], sums, f"Wanda {sites}")
    norms = [torch.stack([_input_norm(sums, m, i) for i in range(len(m.positions))]) for m in matrices]
    return [s * n.to(s)[:, :, None] for s, n in zip(magnitudes(graph, matrices), norms, strict=True)]


def _input_norm(sums: Sums, matrix: WeightMatrix, block: int) -> Tensor:
    """Return sqrt(E[x^2]) of the inputs of a block, [inputs]; zero for rows that the data does not reach."""
    keys = [f"{axis.key} {block}" for axis in matrix.axes if f"{axis.key} {block} count" in sums]
    if not keys:
        return torch.zeros(matrix.positions.shape[1], dtype=torch.float64)
    count = sum(float(sums[f"{k} count"]) for k in keys)
    square = sum((sums[f"{k} square"].cpu() for k in keys), torch.zeros((), dtype=torch.float64))
    return (square / max(count, 1.0)).sqrt()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
