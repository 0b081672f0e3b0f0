"""Which tensors of a program are INT8: the annotation that torchao's PT2E reads. Imported only where torchao is installed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from bough.quantization.fake import ActivationQuantization, PerChannelWeightQuantization
from bough.quantization.program import CONVOLUTIONS, Node, aten, layer_argument, output_axis, tensor_of

PRODUCTS = (aten.matmul.default, aten.bmm.default)
ELEMENTWISE = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
CLAMPS = (aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
SAME_VALUES = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.mean.dim, aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default,
    aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.slice.Tensor, aten.select.int,
    aten.contiguous.default, aten.clone.default, aten.upsample_nearest2d.vec, aten.pixel_shuffle.default, aten.expand.default,
    aten.pad.default, aten.constant_pad_nd.default, aten.alias.default, *CLAMPS,
)  # fmt: skip
"""Operators whose outputs lie within the range of their input, so that both have one scale."""


class Int8Quantizer(Quantizer):  # type: ignore[misc]
    """Annotate convolutions, linear layers and products of activations, and what lies between them.

    Weights are symmetric with a scale for each output channel; activations are affine with one scale for a tensor. Sums,
    concatenations and operators that only move values are INT8 where their result goes to an INT8 layer, and stay in float
    elsewhere, such as in the residual stream of a transformer, whose readers are layer norms in float.

    Args:
        skip: names of nodes that stay in float.
        reduce_range: use 7 bits of weights, for processors whose INT8 instructions overflow (x86 without VNNI).
    """

    def __init__(self, skip: Collection[str] = (), *, reduce_range: bool = False) -> None:
        super().__init__()
        self.skip = frozenset(skip)
        largest = 63 if reduce_range else 127
        self._activation = QuantizationSpec(torch.int8, ActivationQuantization, -128, 127, torch.per_tensor_affine)
        self._weights = {
            axis: QuantizationSpec(
                torch.int8, PerChannelWeightQuantization, -largest, largest, torch.per_channel_symmetric, ch_axis=axis
            )
            for axis in (0, 1)
        }

    def validate(self, model: fx.GraphModule) -> None:
        """Do nothing: what is annotated is supported by construction."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate the nodes of a program, in the order of the run."""
        layers = {node for node in model.graph.nodes if node.name not in self.skip and is_layer(model, node)}
        wanted = _leading_to(model, layers)
        for node in model.graph.nodes:
            if node.meta.get("quantization_annotation") is not None or node.name in self.skip:
                continue
            if node in layers:
                self._layer(model, node)
            elif node in wanted and node.target in ELEMENTWISE and _two_tensors(node):
                self._annotate(node, dict.fromkeys(node.args[:2], self._activation))
            elif node in wanted and node.target is aten.cat.default:
                self._concatenation(node)
            elif node.target in SAME_VALUES and node in wanted:
                self._same_values(node)
        return model

    def _layer(self, model: fx.GraphModule, node: Node) -> None:
        if node.target in PRODUCTS:
            self._annotate(node, {a: self._activation for a in node.args[:2] if isinstance(a, fx.Node)})
            return
        weight = layer_argument(node, 1)
        self._annotate(node, {node.args[0]: self._activation, weight: self._weights[output_axis(node)[0]]})

    def _annotate(self, node: Node, inputs: dict[Any, Any]) -> None:
        """Annotate a node's inputs, and its output, behind an activation function that can be fused into it."""
        clamp = fused_clamp(node)
        end = clamp if clamp is not None and clamp.name not in self.skip else node
        own = self._activation if end is node else None
        node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, own, _annotated=True)
        if end is not node:
            end.meta["quantization_annotation"] = QuantizationAnnotation({}, self._activation, _annotated=True)

    def _concatenation(self, node: Node) -> None:
        parts = [p for p in node.args[0] if isinstance(p, fx.Node)]
        shared = SharedQuantizationSpec((parts[0], node))
        inputs = {part: self._activation if part is parts[0] else shared for part in parts}
        node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, shared, _annotated=True)

    def _same_values(self, node: Node) -> None:
        source = node.args[0]
        before = source.meta.get("quantization_annotation")
        if before is None or before.output_qspec is None:
            return  # the input is in float, so it is made INT8 where it is read
        shared = SharedQuantizationSpec(source)
        node.meta["quantization_annotation"] = QuantizationAnnotation({source: shared}, shared, _annotated=True)


def is_layer(model: fx.GraphModule, node: Node) -> bool:
    """Return whether a node is computed in INT8: a convolution, a linear layer, or a product of activations."""
    if node.op != "call_function":
        return False
    if node.target in PRODUCTS:
        return all(isinstance(a, fx.Node) and a.op != "get_attr" and _floating(a) for a in node.args[:2])
    if node.target not in CONVOLUTIONS and node.target is not aten.linear.default:
        return False
    axis, groups = output_axis(node)
    weight = tensor_of(model, layer_argument(node, 1))
    return weight is not None and weight.dtype is torch.float32 and not (axis == 1 and groups > 1)


def fused_clamp(node: Node) -> Node | None:
    """Return the activation function that alone reads a node and clips it; None if there is none."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMPS else None


def _leading_to(model: fx.GraphModule, layers: Collection[Node]) -> set[Node]:
    """Return the nodes between layers: those whose result reaches a layer through operators that may be INT8."""
    wanted: set[Node] = set()
    for node in reversed(model.graph.nodes):
        between = node.target in SAME_VALUES or node.target in ELEMENTWISE or node.target is aten.cat.default
        if between and _floating(node) and any(user in wanted or user in layers for user in node.users):
            wanted.add(node)
    return wanted


def _two_tensors(node: Node) -> bool:
    """Return whether a sum or product is of two different activations."""
    first, second = node.args[:2]
    tensors: bool = all(isinstance(a, fx.Node) and a.op != "get_attr" and _floating(a) for a in (first, second))
    return tensors and first is not second and node.kwargs.get("alpha", 1) == 1


def _floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype is torch.float32
