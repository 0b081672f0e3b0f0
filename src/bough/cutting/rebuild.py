"""`rebuild`: a cut that the model's own Python does not agree with, as a program of which every number is known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bough.cutting.cut import _formatted, _like, _plain, _plainly, _Slicer, check
from bough.cutting.literals import Types, rewrite, set_argument
from bough.cutting.passages import note
from bough.cutting.program import NodeError, exported, graphs, place, walk
from bough.errors import ConflictError, ExportError
from bough.graph import sizes
from bough.planning.plan import Plan
from bough.spaces import Atom, Indices, coordinates, indices, normal
from bough.tracing.execution import Execution, held_tensors
from bough.tracing.held import rewrite as set_integers
from bough.tracing.layers import leave_out
from bough.tracing.recorder import Recorder
from bough.tracing.stream import Call
from bough.tracing.trace import flatten, split_inputs
from bough.tracing.wrapped import traceable

Shapes = dict[fx.Node, Any]


def rebuild(model: nn.Module, plan: Plan, example_inputs: Any, *, dynamic_shapes: Any = None) -> nn.Module:
    """A new, smaller model for a plan that the model's own Python contradicts; `model` stays as it was.

    The model is exported by `torch.export`; in the exported program every integer is a literal, and each is rewritten by
    the types of the axes it belongs to. What the model derives from its widths (attention's scale, say) stays the number
    it was. The result runs and trains, and has the names of the model's `state_dict`, but its code is the program's:

    - what the model's Python decides (by data, by `self.training`) is as it was on the example inputs, in the mode that
      the model is in. `train()` and `eval()` switch dropout and batch norm, and nothing else;
    - sizes of inputs are those of the example inputs, unless `dynamic_shapes` says otherwise;
    - modules' classes, hooks and wrappers are gone.

    Args:
        model: as given to `trace`.
        plan: any plan; one made with `on_conflict="rebuild"` may contradict the model's Python.
        example_inputs: as for `trace`.
        dynamic_shapes: as for `torch.export.export`: which sizes of the inputs may vary.

    Raises:
        PlanError: the plan was made for another model.
        ExportError: torch.export can not make a program of the model, or one that the plan does not fit.
        ConflictError: an op's numbers have no known meaning for this cut; the message names op, module and source line.

    Example:
        >>> import torch, bough
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         return self.b(self.a(x).relu().view(-1, 8))
        >>> net, x = Net(), torch.randn(1, 4)
        >>> graph = bough.trace(net, x)
        >>> scores = bough.score(graph, bough.importance.Magnitude())
        >>> plan = bough.plan(graph, scores, keep=0.5, on_conflict="rebuild")
        >>> small = rebuild(net, plan, x)
        >>> tuple(small.a.weight.shape), bough.verify(net, small, plan, x).equal
        ((4, 4), True)
    """
    inner = traceable(model)
    check(inner, plan)
    args, kwargs = split_inputs(example_inputs)
    held = list(held_tensors(inner))
    program = exported(_shortened(inner, plan), args, kwargs, dynamic_shapes)
    program.training = inner.training
    states, types = _typed(program, args, kwargs)
    names = {id(t): n for n, t, _, _ in held}
    kept = _kept(states, names, plan)
    wanted = {n: _sizes(axes, {a: len(i) for a, i in kept.items()}) for n, axes in types.axes.items()}
    for graph in graphs(program):
        for node in graph.nodes:
            rewrite(node, types, kept)
    with _plainly():
        slicer = _Slicer(replace(plan, scales=()))  # no number changes, so there is none to make up for
        new = {id(t): _cut(t, names.get(id(t), ""), axes, kept, slicer) for t, axes in states}
    small = Rebuilt(program, lambda t: new[id(t)])
    _agree(small, wanted, args, kwargs)
    note(plan, small, ((n, t, new[id(t)]) for n, t, parameter, _ in held if parameter and id(t) in new))
    return small


class Rebuilt(fx.GraphModule):
    """An exported program as a module that trains: `train` and `eval` switch its dropouts and batch norms."""

    def __init__(self, program: fx.GraphModule, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(program, program.graph, "Rebuilt")
        self.training = program.training
        for node in (n for graph in graphs(self) for n in graph.nodes):
            flag = _mode_flag(node)
            if flag is not None and _argument(node, flag) == self.training:
                node.meta["switch"] = (flag, True, False)
            elif _argument(node, "dropout_p") and self.training:
                node.meta["switch"] = ("dropout_p", _argument(node, "dropout_p"), 0.0)
        _fill(self, program, change)

    def train(self, mode: bool = True) -> Rebuilt:
        """Switches dropout and batch norm; what else the model does in this mode was not exported."""
        if mode != self.training:
            for node in (n for graph in graphs(self) for n in graph.nodes):
                if "switch" in node.meta:
                    name, on, off = node.meta["switch"]
                    set_argument(node, name, on if mode else off)
            for part in self.modules():
                if isinstance(part, fx.GraphModule):
                    part.recompile()
        super().train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Rebuilt:
        copied = super().__deepcopy__(memo)
        _fill(copied, self, lambda t: memo[id(t)])
        assert isinstance(copied, Rebuilt)
        return copied


def _mode_flag(node: fx.Node) -> str | None:
    """The argument that says whether the model trains."""
    names = [a.name for a in node.target._schema.arguments] if isinstance(node.target, torch._ops.OpOverload) else []
    flag = next((n for n in ("train", "training") if n in names), None)
    return None if "running_mean" in names and _argument(node, "running_mean") is None else flag


def _argument(node: fx.Node, name: str) -> Any:
    names = [a.name for a in node.target._schema.arguments] if isinstance(node.target, torch._ops.OpOverload) else []
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(name)


def _fill(target: nn.Module, source: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Holds in `target`, at the same places and in the same order, what `change` makes of each tensor that `source` holds."""
    for prefix, module in list(source.named_modules(remove_duplicate=False)):
        holder = target
        for name in filter(None, prefix.split(".")):
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder._modules[name]  # type: ignore[assignment]
        for name in (*module._parameters, *module._buffers):  # those of the graph may be there, in the order of their use
            holder._parameters.pop(name, None)
            holder._buffers.pop(name, None)
        for name, parameter in module._parameters.items():
            holder.register_parameter(name, None if parameter is None else change(parameter))  # type: ignore[arg-type]
        transient = module._non_persistent_buffers_set
        for name, buffer in module._buffers.items():
            holder.register_buffer(name, None if buffer is None else change(buffer), persistent=name not in transient)
        for name, value in list(module.__dict__.items()):
            if isinstance(value, Tensor):
                holder._buffers.pop(name, None)
                holder.register_buffer(name, change(value), persistent=False)


def _shortened(model: nn.Module, plan: Plan) -> nn.Module:
    """The model without the layers that the plan leaves out: another module around the same tensors."""
    if not plan.left_out:
        return model
    short = copy.deepcopy(model, {id(t): t for _, t, _, _ in held_tensors(model)})
    set_integers(short, plan.attributes if plan.rebuild else {}, plan.sequences)
    leave_out(short, [(name, *how) for name, how in plan.left_out.items()])
    return short


def _typed(program: fx.GraphModule, args: Any, kwargs: Any) -> tuple[list[tuple[Tensor, Any]], Types]:
    """(each tensor that the program holds with its axes, the types of its nodes); on shapes alone where that carries."""
    try:
        return _recorded(program, args, kwargs, real=False)
    except NodeError:
        try:
            return _recorded(program, args, kwargs, real=True)
        except NodeError as error:
            raise ExportError(f"the exported program can not be run: {place(error.node)}: {error}") from error


def _recorded(program: fx.GraphModule, args: Any, kwargs: Any, real: bool) -> tuple[list[tuple[Tensor, Any]], Types]:
    execution = Execution(program, real)
    recorder = Recorder(program, execution)
    for tensor in flatten((args, kwargs)):
        recorder.add_input(tensor, "input of the model")
    types = Types()
    ops = 0

    def seen(node: fx.Node, result: Any) -> None:
        nonlocal ops
        if isinstance(result, Tensor):
            types.axes[node] = recorder.typing(recorder.owned(result)).axes
        elif isinstance(result, (tuple, list)) and node.op == "call_function":
            types.axes[node] = [recorder.typing(recorder.owned(t)).axes for t in result if isinstance(t, Tensor)]
        elif isinstance(result, int):
            types.numbers[node] = int(result)
        if len(recorder.ops) > ops:
            ops, types.integers[node] = len(recorder.ops), recorder.last.integers

    walk(program, recorder, execution, args, kwargs, seen)
    return [(t, recorder.states[n].axes) for n, t, _, _ in held_tensors(program)], types


def _kept(states: list[tuple[Tensor, Any]], names: Mapping[int, str], plan: Plan) -> dict[Atom, Indices]:
    """The units that the plan keeps of each atom of the program's types."""
    kept: dict[Atom, Indices] = {}
    told = [(names[id(t)], axes, plan.kept.get(names[id(t)], {})) for t, axes in states if id(t) in names]
    for _, axes, dims in told:
        for dim, there in dims.items():
            for atom in normal(axes[dim]).atoms:
                if atom not in kept:
                    units = np.unique(np.concatenate([c[there] for c in coordinates(axes[dim], atom)]))
                    kept[atom] = units[units >= 0]
    for name, axes, dims in told:
        for dim, axis in enumerate(axes):
            found = indices(axis, kept).tolist()
            if found != dims.get(dim, list(range(axis.size))):
                raise ExportError(
                    f"the plan does not fit the exported program: of dim {dim} of {name} it keeps "
                    f"{len(dims.get(dim, range(axis.size)))} indices, and the program's types {len(found)} or others"
                )
    return {a: units for a, units in kept.items() if len(units) < a.size}


def _cut(tensor: Tensor, name: str, axes: Any, kept: Mapping[Atom, Indices], slicer: _Slicer) -> Tensor:
    """A tensor of the program as it is to be; what the model does not hold (a constant) goes by its types."""
    value = _plain(tensor)
    if name:
        return _like(tensor, _formatted(tensor, slicer(name, value, fresh=True)))
    for dim, axis in enumerate(axes):
        value = value.index_select(dim, torch.from_numpy(indices(axis, kept)).to(value.device))
    return _like(tensor, value.clone())


def _sizes(axes: Any, counts: Mapping[Atom, int]) -> Any:
    return [sizes(a, counts) for a in axes] if isinstance(axes, list) else sizes(axes, counts)


class _Plain:
    """Runs ops as they are."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    def op(self, call: Call) -> Any:
        return self.execution.run(call)

    def owned(self, tensor: Tensor) -> Tensor:
        return self.execution.stand_ins.get(id(tensor), tensor)

    def shape(self, tensor: Tensor) -> torch.Size:
        return tensor.shape

    def device(self, tensor: Tensor) -> torch.device:
        return self.execution.device(tensor)

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        pass


def _agree(small: Rebuilt, wanted: Shapes, args: Any, kwargs: Any) -> None:
    """Raises where a node of the rewritten program does not give the sizes that its types have after the cut."""

    def seen(node: fx.Node, result: Any) -> None:
        if node in wanted:
            given = tuple(result.shape) if isinstance(result, Tensor) else [tuple(t.shape) for t in result if t is not None]
            if given != wanted[node]:
                raise NodeError(node, ValueError(f"it gives {given} and should give {wanted[node]}"))

    def run(real: bool) -> None:
        execution = Execution(small, real)
        walk(small, _Plain(execution), execution, args, kwargs, seen)

    try:
        try:
            run(real=False)
        except NodeError:
            run(real=True)  # control by data
    except NodeError as error:
        numbers = [a for a in error.node.args if isinstance(a, (int, list, tuple))]
        raise ConflictError(
            f"the program can not be rewritten for this plan at {place(error.node)}: {error}. What its numbers {numbers} mean "
            "for cut axes is not known: leave the groups that this op reads as they are (ignore=...), or use on_conflict='freeze'"
        ) from error
