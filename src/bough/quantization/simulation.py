"""A program with simulated quantization in it, run on data: for ranges, for errors, and to be trained."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from bough.cutting.program import Inputs
from bough.quantization.fake import ActivationQuantization, _Quantization
from bough.quantization.program import CONVOLUTIONS, Node, aten, plain
from bough.quantization.quantizer import Int8Quantizer, fused_clamp, is_layer
from bough.quantization.ranges import Histogram, choose_range
from bough.torch_internals import tree_flatten_spec

Histograms = dict[str, Histogram]
"""{name of the node that gives the values: histogram}"""


def simulated(
    base: fx.GraphModule, histograms: Mapping[str, Histogram], observer: str, skip: Collection[str] = (), *,
    reduce_range: bool = False,
) -> fx.GraphModule:  # fmt: skip
    """Return a copy of a float program with simulated quantization, and ranges by a rule; see `choose_range`."""
    program = prepared(base, skip, reduce_range=reduce_range)
    for module, producers in observed(program).items():
        values = Histogram()
        for name in producers:
            values = values.merge(histograms[name])
        module.set_range(*choose_range(values, observer).parameters())
    return program


def prepared(base: fx.GraphModule, skip: Collection[str] = (), *, reduce_range: bool = False) -> fx.GraphModule:
    """Return a copy of a float program with simulated quantization whose ranges are not set."""
    made = prepare_pt2e(copy.deepcopy(base), Int8Quantizer(skip, reduce_range=reduce_range))
    return plain(made)


def converted(program: nn.Module) -> fx.GraphModule:
    """Return the program with weights stored as INT8, and operators of quantization in place of the simulation."""
    with torch.no_grad():
        return plain(convert_pt2e(copy.deepcopy(program).eval()))


def observed(program: fx.GraphModule) -> dict[ActivationQuantization, list[str]]:
    """Return the quantizations of activations and the nodes whose values each of them rounds."""
    found: dict[ActivationQuantization, list[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_module":
            module = program.get_submodule(node.target)
            if isinstance(module, ActivationQuantization):
                found.setdefault(module, []).append(node.args[0].name)
    return found


def enable(program: fx.GraphModule, on: bool) -> None:
    """Switch the simulation on or off; where it is off the program computes in float."""
    for module in program.modules():
        if isinstance(module, _Quantization):
            module.enabled = on


class _Watching(fx.Interpreter):
    """Runs a program and keeps what `keep` nodes give, or shows it to a function."""

    def __init__(self, program: fx.GraphModule, see: Any) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self.see = see

    def run_node(self, n: Node) -> Any:
        return self.see(n, super().run_node(n))


@torch.no_grad()
def watch(program: fx.GraphModule, inputs: Inputs, see: Any) -> Any:
    """Run a program; `see(node, value)` is called with what each node gives, and returns what its readers get."""
    flat = tree_flatten_spec(inputs, program._in_spec)
    return _Watching(program, see).run(*flat, enable_io_processing=False)


def values_of(program: fx.GraphModule, inputs: Inputs) -> dict[str, Any]:
    """Return {node name: what the node gives} of one run."""
    found: dict[str, Any] = {}

    def see(node: Node, value: Any) -> Any:
        found[node.name] = value
        return value

    watch(program, inputs, see)
    return found


def histograms_of(base: fx.GraphModule, batches: Iterable[Inputs], *, reduce_range: bool = False) -> Histograms:
    """Return histograms of all activations that quantization may round, over the batches."""
    names = {n for producers in observed(prepared(base, reduce_range=reduce_range)).values() for n in producers}
    found: Histograms = {name: Histogram() for name in names}

    def see(node: Node, value: Any) -> Any:
        if node.name in found:
            found[node.name].add(value)
        return value

    for inputs in batches:
        watch(base, inputs, see)
    return found


def layers_of(program: fx.GraphModule) -> list[Node]:
    """Return the nodes that are computed in INT8, in the order of the run: their weights or inputs are rounded."""
    return [
        node
        for node in program.graph.nodes
        if (node.target in CONVOLUTIONS or node.target in (aten.linear.default, aten.matmul.default, aten.bmm.default))
        and any(_rounding(program, a) for a in node.args if isinstance(a, fx.Node))
    ]


def candidates(base: fx.GraphModule) -> list[Node]:
    """Return the nodes of a float program that may be computed in INT8."""
    return [node for node in base.graph.nodes if is_layer(base, node)]


def _rounding(program: fx.GraphModule, node: Node) -> _Quantization | None:
    module = program.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, _Quantization) else None


def end_of(node: Node) -> Node:
    """Return the node whose value a layer gives: itself, or the activation function that is fused into it."""
    clamp = fused_clamp(node)
    return node if clamp is None else clamp


@torch.no_grad()
def local_output(program: fx.GraphModule, node: Node, values: Mapping[str, Any]) -> Tensor:
    """Return what a layer alone gives in INT8 on inputs in float.

    Args:
        program: with simulated quantization, switched on.
        node: the layer.
        values: of a run with the simulation off.
    """

    def rounded(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        reader: Node = argument
        module = _rounding(program, reader)
        return values[reader.name] if module is None else module(values[reader.args[0].name])

    args = fx.node.map_aggregate(node.args, rounded)
    output: Tensor = node.target(*args, **node.kwargs)
    end = end_of(node)
    if end is not node:
        output = end.target(output, *end.args[1:], **end.kwargs)
    for user in end.users:
        module = _rounding(program, user)
        if module is not None:
            output = module(output)
            break
    return output
