"""Cross-layer equalization: scales moved from channels with large activations into the weights that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from bough.cutting.program import Inputs
from bough.quantization.program import (
    CONVOLUTIONS,
    Node,
    add_tensor,
    aten,
    layer_argument,
    output_axis,
    set_bias,
    set_new_weight,
    tensor_of,
    weighted_layers,
)
from bough.quantization.simulation import watch

_HOMOGENEOUS = (aten.relu.default, aten.max_pool2d.default, aten.avg_pool2d.default, aten.leaky_relu.default)
_TINY = 1e-8
_RANGE = 2.0**10  # a channel is scaled by this at most


def equalize_(program: fx.GraphModule, batches: Iterable[Inputs]) -> int:
    """Scale the channels between layers, in place, so that each has about as large activations as weights that read it.

    A pair is a convolution, linear layer or layer norm, and the convolutions and linear layers that alone read its output,
    behind functions f with f(s x) = s f(x). Channel i is divided by s[i] = sqrt(a[i] / w[i]), of its largest activation and
    the largest weight that reads it, as a share of the geometric mean over channels. In float the program computes the same.

    Returns:
        The number of pairs.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019); Xiao et al.,
        SmoothQuant (2023), for layer norms, and for largest activations in place of weights.
    """
    pairs = [(a, *found) for a in program.graph.nodes if (found := _readers(program, a)) is not None]
    largest: dict[str, Tensor] = {}
    ends = {end.name: reader for _, end, (reader, *_) in pairs}

    def see(node: Node, value: Any) -> Any:
        if node.name in ends:
            dim = 1 if ends[node.name].target in CONVOLUTIONS else value.dim() - 1
            seen = value.abs().amax([d for d in range(value.dim()) if d != dim])
            largest[node.name] = torch.maximum(largest[node.name], seen) if node.name in largest else seen
        return value

    for inputs in batches:
        watch(program, inputs, see)
    for first, end, readers in pairs:
        weights = torch.stack([_read_by(program, reader) for reader in readers]).amax(0)
        scale = (largest[end.name].clamp_min(_TINY) / weights.clamp_min(_TINY)).sqrt()
        used = (largest[end.name] > _TINY) & (weights > _TINY)
        scale = torch.where(used, scale / scale[used].log().mean().exp(), 1.0).clamp(1 / _RANGE, _RANGE)
        _scale_outputs(program, first, 1 / scale)
        for reader in readers:
            set_new_weight(program, reader, _weight(program, reader) * _along_inputs(scale, reader))
    program.graph.eliminate_dead_code()
    program.recompile()
    return len(pairs)


def _readers(program: fx.GraphModule, first: Node) -> tuple[Node, list[Node]] | None:
    """Return the node whose channels are scaled, and the layers that alone read it; None unless the channels can be."""
    layers = set(weighted_layers(program))
    if first.target is aten.layer_norm.default:
        known = len(first.args) > 3 and all(tensor_of(program, a) is not None for a in first.args[2:4])
        if not known or len(first.args[1]) != 1:
            return None
    elif first not in layers or output_axis(first)[0] != 0:
        return None
    end = first
    while len(end.users) == 1 and (user := next(iter(end.users))).target in _HOMOGENEOUS:
        end = user
    readers = list(end.users)
    if not readers or not all(r in layers and r.args[0] is end and r.args[0] not in r.args[1:] for r in readers):
        return None
    last = first.target in (aten.linear.default, aten.layer_norm.default)
    if any((r.target is aten.linear.default) != last or not _simple(program, r) for r in readers):
        return None
    return end, readers


def _simple(program: fx.GraphModule, reader: Node) -> bool:
    """Return whether each input channel of a layer has weights of its own: one group, or a group for each channel."""
    axis, groups = output_axis(reader)
    return axis == 0 and (groups == 1 or _weight(program, reader).shape[1] == 1)


def _weight(program: fx.GraphModule, node: Node) -> Tensor:
    weight = tensor_of(program, layer_argument(node, 1))
    assert weight is not None
    return weight.detach()


def _read_by(program: fx.GraphModule, reader: Node) -> Tensor:
    """Return the largest weight that reads each input channel."""
    weight = _weight(program, reader).abs()
    groups = output_axis(reader)[1]
    if groups > 1:
        return weight.flatten(1).amax(1).view(groups, -1).amax(1)
    return weight.transpose(0, 1).flatten(1).amax(1)


def _along_inputs(scale: Tensor, reader: Node) -> Tensor:
    """Return the scale of each input channel, shaped to be multiplied with a layer's weight."""
    rank = len(reader.args[1].meta["val"].shape) if "val" in reader.args[1].meta else 0
    groups = output_axis(reader)[1]
    if groups > 1:
        outputs = reader.args[1].meta["val"].shape[0]
        return scale.repeat_interleave(outputs // groups).view(-1, *[1] * (rank - 1))
    return scale.view(1, -1, *[1] * (rank - 2))


def _scale_outputs(program: fx.GraphModule, first: Node, scale: Tensor) -> None:
    if first.target is aten.layer_norm.default:
        weight, bias = (tensor_of(program, a) for a in first.args[2:4])
        assert weight is not None
        assert bias is not None
        set_norm(program, first, weight.detach() * scale, bias.detach() * scale)
        return
    weight = _weight(program, first)
    set_new_weight(program, first, weight * scale.view(-1, *[1] * (weight.dim() - 1)))
    bias = tensor_of(program, layer_argument(first, 2))
    if bias is not None:
        set_bias(program, first, bias.detach() * scale)


def set_norm(program: fx.GraphModule, node: Node, weight: Tensor, bias: Tensor) -> None:
    """Give a layer norm a weight and a bias of its own."""
    own = [add_tensor(program, node, f"{node.name}_{n}", v) for n, v in (("weight", weight), ("bias", bias))]
    node.args = (*node.args[:2], *own, *node.args[4:])
