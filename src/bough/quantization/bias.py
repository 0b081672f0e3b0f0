"""Bias correction: what rounding adds to the mean of each channel, taken back in the biases."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from bough.cutting.program import Inputs
from bough.quantization.program import CONVOLUTIONS, Node, aten, layer_argument, set_bias, tensor_of
from bough.quantization.simulation import enable, layers_of, values_of, watch


@torch.no_grad()
def corrected(base: fx.GraphModule, program: fx.GraphModule, inputs: Inputs) -> fx.GraphModule:
    """Return a copy of a float program whose biases make up for what quantization adds to the mean of each channel.

    Layers are corrected in the order of the run, in one pass: each is compared with the float program while those before it
    are corrected already.

    Args:
        base: the float program.
        program: the same with simulated quantization.
        inputs: a batch.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019), section 4.2, with means
        that are measured.
    """
    enable(program, False)
    wanted = values_of(program, inputs)
    enable(program, True)
    weighted = {n.name for n in layers_of(program) if n.target in CONVOLUTIONS or n.target is aten.linear.default}
    shifts: dict[str, Tensor] = {}

    def see(node: Node, value: Any) -> Any:
        if node.name not in weighted:
            return value
        dim = 1 if node.target in CONVOLUTIONS else value.dim() - 1
        shift = (wanted[node.name] - value).mean([d for d in range(value.dim()) if d != dim])
        shifts[node.name] = shift
        shape = [1] * value.dim()
        shape[dim] = -1
        return value + shift.view(shape)

    watch(program, inputs, see)
    made = copy.deepcopy(base)
    for node in list(made.graph.nodes):
        if node.name in shifts:
            bias = tensor_of(made, layer_argument(node, 2))
            set_bias(made, node, shifts[node.name] if bias is None else bias.detach() + shifts[node.name])
    made.graph.eliminate_dead_code()
    made.recompile()
    return made
