"""The float program that is quantized: captured by torch.export, without in-place operators, batch norms folded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bough.cutting.program import Inputs, exported_program
from bough.errors import QuantizationError
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.tree import tensors_within

aten = torch.ops.aten
Node = Any  # a torch.fx.Node, whose arguments are of too many types for a type checker
CONVOLUTIONS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose1d.default,
    aten.conv_transpose2d.input, aten.conv1d.padding, aten.conv2d.padding,
)  # fmt: skip
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)


def capture(model: nn.Module, inputs: Inputs) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return a model in eval mode as a graph of ATen operators that holds copies of its tensors, and notes.

    The batch, dim 0 of the inputs, may vary if torch.export can see that; otherwise a note says that it is fixed.

    Raises:
        ExportError: torch.export can not make a program of the model.
    """
    sized, shapes = batch_that_varies(inputs)
    first = _batch(sized)
    notes: tuple[str, ...] = ()
    try:
        program = torch.export.export(model, *sized, dynamic_shapes=shapes, strict=False)
    except Exception:
        program, notes = exported_program(model, inputs), (f"the size of the batch is fixed at {_batch(inputs)}",)
    else:
        if not (_varies(program) and _runs(program, sized)):
            notes = (f"the size of the batch is fixed at {_batch(inputs)}",)
            program = program if first == _batch(inputs) else exported_program(model, inputs)
    module = copy.deepcopy(program.module(check_guards=False))
    graph = plain(module)
    _functional(graph)
    _fold_norms(graph)
    _drop_unused(graph)
    return graph, notes


def plain(program: Any) -> fx.GraphModule:
    """Return a program without the methods by which torch.export and torchao forbid train() and eval()."""
    made = fx.GraphModule(program, program.graph)
    made.meta.update(program.meta)
    return made.eval()


def batch_that_varies(inputs: Inputs) -> tuple[Inputs, Any]:
    """Return inputs from which torch.export can see that the batch varies, and the dynamic shapes that say so."""
    sized = _doubled(inputs)
    shapes = torch.export.ShapesCollection()
    for tensor in tensors_within(sized):
        if tensor.dim() and len(tensor) == _batch(sized):
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    return sized, shapes


def in_pieces(batches: Sequence[Inputs], inputs: Inputs) -> list[Inputs]:
    """Return batches as pieces of the size of the example inputs, for a program whose batch is fixed; a rest is left out.

    Raises:
        QuantizationError: no batch is as large.
    """
    size = _batch(inputs)
    found = [_piece(batch, at, size) for batch in batches for at in range(0, _batch(batch) - size + 1, size)]
    if not found:
        raise QuantizationError(f"the model fixes its batch at {size}, and no batch of data is as large: give larger batches")
    return found


def _piece(batch: Inputs, start: int, size: int) -> Inputs:
    whole = _batch(batch)
    piece: Inputs = with_tensors(batch, lambda t: t[start : start + size] if t.dim() and len(t) == whole else t)
    return piece


def _batch(inputs: Inputs) -> int:
    return next((len(t) for t in tensors_within(inputs) if t.dim()), 0)


def _doubled(inputs: Inputs) -> Inputs:
    """Return inputs with a batch of two in place of a batch of one, which torch.export would take for fixed."""
    if _batch(inputs) != 1:
        return inputs
    doubled: Inputs = with_tensors(inputs, lambda t: torch.cat([t, t]) if t.dim() and len(t) == 1 else t)
    return doubled


def _varies(program: Any) -> bool:
    first = next(
        v for n in program.graph.nodes if n.op == "placeholder" and (v := _value(n)) is not None and _is_input(program, n)
    )
    return bool(first.dim()) and not isinstance(first.shape[0], int)


def _runs(program: Any, sized: Inputs) -> bool:
    """Return whether a program runs with a batch that is larger by one; Python such as `len(x)` may have fixed a part of it."""
    size = _batch(sized)
    args, kwargs = with_tensors(sized, lambda t: torch.cat([t, t[:1]]) if t.dim() and len(t) == size else t)
    try:
        program.module(check_guards=False)(*args, **kwargs)
    except RuntimeError:
        return False
    return True


def _is_input(program: Any, node: Node) -> bool:
    return node.name in program.graph_signature.user_inputs


def _value(node: Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _functional(program: fx.GraphModule) -> None:
    """Put operators that return a new tensor in the place of in-place ones; drop checks of dtypes and dropout."""
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        name = getattr(node.target, "_schema", None) and node.target._schema.name.removeprefix("aten::")
        if node.target is aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        elif name in ("dropout", "dropout_", "feature_dropout", "alpha_dropout"):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
        elif name and name.endswith("_") and not name.startswith("_"):
            packet = getattr(aten, name[:-1], None)
            overload = getattr(packet, node.target._overloadname, None)
            if overload is not None and name not in ("copy_", "set_", "resize_"):
                node.target = overload
    program.graph.lint()
    program.recompile()


def tensor_of(program: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the parameter or buffer that a node reads; None if the node is something else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = program
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def set_tensor(program: fx.GraphModule, node: Node, value: Tensor) -> None:
    """Put another value in place of the parameter that a node reads."""
    path, _, name = str(node.target).rpartition(".")
    holder = program.get_submodule(path)
    old = getattr(holder, name)
    new = nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    setattr(holder, name, new)


def add_tensor(program: fx.GraphModule, before: Node, name: str, value: Tensor) -> Node:
    """Add a parameter and a node before another node that reads the parameter."""
    free = name
    while hasattr(program, free):
        free += "_"
    setattr(program, free, nn.Parameter(value))
    with program.graph.inserting_before(before):
        node = program.graph.get_attr(free)
    node.meta["val"] = value
    return node


def layer_argument(node: Node, index: int) -> Any:
    """Return a positional argument of a convolution or linear layer (1 the weight, 2 the bias), or None."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(("input", "weight", "bias")[index])


def set_bias(program: fx.GraphModule, node: Node, value: Tensor) -> None:
    """Give a convolution or linear layer a bias of its own."""
    bias = add_tensor(program, node, f"{node.name}_bias", value)
    node.args = (*node.args[:2], bias, *node.args[3:])
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}


def _fold_norms(program: fx.GraphModule) -> None:
    """Fold each batch norm that alone reads a convolution or a linear layer [N, C] into the layer's weight and bias."""
    for node in list(program.graph.nodes):
        layer = node.args[0] if node.target is aten.batch_norm.default else None
        if not isinstance(layer, fx.Node) or len(layer.users) != 1 or node.args[5]:
            continue
        flat = layer.target is aten.linear.default and len(layer.meta["val"].shape) == 2
        weight = tensor_of(program, layer_argument(layer, 1)) if layer.target in CONVOLUTIONS or flat else None
        given = layer_argument(layer, 2)
        bias = tensor_of(program, given)
        if weight is None or (given is not None and bias is None):
            continue
        scale, mean, shift = _norm(program, node)
        folded = _scaled(weight, scale, layer)
        set_new_weight(program, layer, folded)
        start = torch.zeros_like(mean) if bias is None else bias.detach()
        set_bias(program, layer, (start - mean) * scale + shift)
        node.replace_all_uses_with(layer)
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()


def _drop_unused(program: fx.GraphModule) -> None:
    """Delete the parameters and buffers that no operator reads, such as those of folded norms."""
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for path, module in list(program.named_modules()):
        for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            if f"{path}.{name}".lstrip(".") not in read:
                delattr(module, name)


def set_new_weight(program: fx.GraphModule, layer: Node, value: Tensor) -> None:
    """Give a layer a weight of its own, so that other layers that share the old one keep it."""
    weight = add_tensor(program, layer, f"{layer.name}_weight", value)
    layer.args = (layer.args[0], weight, *layer.args[2:])


def _norm(program: fx.GraphModule, node: Node) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scale, mean, shift) by which a batch norm gives (x - mean) * scale + shift."""
    weight, bias, mean, variance = (tensor_of(program, a) for a in node.args[1:5])
    assert mean is not None
    assert variance is not None
    scale = (variance + node.args[7]).rsqrt()
    scale = scale if weight is None else weight.detach() * scale
    return scale, mean, torch.zeros_like(mean) if bias is None else bias.detach()


def _scaled(weight: Tensor, scale: Tensor, layer: Node) -> Tensor:
    """Return a weight whose output channels are scaled."""
    axis, groups = output_axis(layer)
    if groups > 1 and axis == 1:  # transposed: [in, out / groups, ...], the inputs of a group together
        per_group = scale.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        return weight.detach() * per_group.view(*per_group.shape, *[1] * (weight.dim() - 2))
    shape = [1] * weight.dim()
    shape[axis] = -1
    return weight.detach() * scale.view(shape)


def output_axis(layer: Node) -> tuple[int, int]:
    """Return the dim of a layer's weight that numbers output channels, and the number of groups."""
    if layer.target in TRANSPOSED:
        return 1, int(layer.args[6]) if len(layer.args) > 6 else 1
    if layer.target in CONVOLUTIONS:
        return 0, int(layer.args[6]) if len(layer.args) > 6 else 1
    return 0, 1


def weighted_layers(program: fx.GraphModule) -> Iterator[Node]:
    """Yield the convolutions and linear layers whose weights are parameters, in the order of the run."""
    for node in program.graph.nodes:
        if (node.target in CONVOLUTIONS or node.target is aten.linear.default) and tensor_of(
            program, layer_argument(node, 1)
        ) is not None:
            yield node


def module_of(node: Node) -> str:
    """Return the path of the module in whose forward an operator ran; empty for the model's own."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self']").lstrip(".") if stack else ""
