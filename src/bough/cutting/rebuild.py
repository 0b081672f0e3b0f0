"""`rebuild`: a cut that the model's own Python does not agree with, as a program of which every number is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bough.arguments import check_arguments
from bough.calls import FORWARD, as_calls
from bough.cutting.check import check
from bough.cutting.cut import cut
from bough.cutting.literals import rewrite
from bough.cutting.names import shortened
from bough.cutting.parameter_history import note
from bough.cutting.program import Inputs, NodeError, data_sized, exported, graphs, place, walk
from bough.cutting.rebuilt import Rebuilt
from bough.cutting.slicing import Slicer, formatted, like, plain, plainly
from bough.errors import ConflictError, ExportError
from bough.graph import sizes
from bough.ops import Types
from bough.planning.plan import Plan
from bough.spaces import Atom, Indices, coordinates, indices, normal
from bough.tracing.capture.execution import Execution, OnStandIns, model_tensors
from bough.tracing.capture.stream import tensors_in
from bough.tracing.capture.tree import tensors_within
from bough.tracing.capture.wrapped import traceable
from bough.tracing.typing.recorder import Recorder

Shapes = dict[fx.Node, list[tuple[int, ...]]]


def rebuild(model: nn.Module, plan: Plan, example_inputs: Any, *, dynamic_shapes: Any = None) -> nn.Module:
    """A new, smaller model for a plan that the model's own Python contradicts; `model` stays as it was.

    The model is exported by `torch.export`; in the exported program every integer is a literal, and each is rewritten by
    the types of the axes it belongs to. What the model derives from its widths (attention's scale, say) stays the number
    it was. The result runs and trains, and has the names of the model's `state_dict`, but its code is the program's:

    - what the model's Python decides (by data, by `self.training`) is as it was on the example inputs, in the mode that
      the model is in. `train()` and `eval()` switch dropout and batch norm, and nothing else (dropout inside attention only
      where the model was rebuilt in training mode: in evaluation it is not exported);
    - sizes of inputs are those of the example inputs, unless `dynamic_shapes` says otherwise; devices stay, too;
    - modules' classes, hooks and wrappers are gone.

    Args:
        model: as given to `trace`.
        plan: made with `on_conflict="rebuild"`; where the model's Python agrees with it, this is what `cut` gives, exported.
        example_inputs: as for `trace`; one call of `forward`.
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
        >>> small = bough.rebuild(net, plan, x)
        >>> tuple(small.a.weight.shape), bough.verify(net, small, plan, x).equal
        ((4, 4), True)
    """
    check_arguments(rebuild, locals())
    inner = traceable(model)
    check(inner, plan)
    inputs = _inputs(example_inputs)
    if not plan.rebuild:
        return Rebuilt(exported(cut(inner, plan), inputs, dynamic_shapes), lambda t: t)
    named = list(model_tensors(inner))
    program = exported(shortened(inner, plan), inputs, dynamic_shapes)
    states, types = _typed(program, inputs)
    names = {id(t): n for n, t, _, _ in named}
    kept = _kept(states, names, plan)
    counts = {a: len(units) for a, units in kept.items()}
    wanted = {n: [sizes(a, counts) for a in _listed(axes)] for n, axes in types.axes.items()}
    for graph in graphs(program):
        for node in graph.nodes:
            rewrite(node, types, kept)
    with plainly():
        slicer = Slicer(plan)
        new = {id(t): _cut(t, names.get(id(t), ""), axes, kept, slicer) for t, axes in states}
    small = Rebuilt(program, lambda t: new[id(t)])
    _agree(small, wanted, inputs)
    note(plan, small, ((n, t, new[id(t)]) for n, t, parameter, _ in named if parameter and id(t) in new))
    return small


def _inputs(example_inputs: Any) -> Inputs:
    """Return the arguments of the one call that is exported."""
    calls = as_calls(example_inputs)
    if len(calls) > 1 or calls[0].method != FORWARD:
        raise ExportError(
            f"rebuild exports one call of forward, and was given {', '.join(map(str, calls))}: give that one call"
        )
    return calls[0].args, calls[0].kwargs


def _typed(program: fx.GraphModule, inputs: Inputs) -> tuple[list[tuple[Tensor, Any]], Types]:
    """(each tensor that the program holds with its axes, the types of its nodes); on shapes alone where that carries."""
    try:
        return _recorded(program, inputs, real=False)
    except NodeError:
        try:
            return _recorded(program, inputs, real=True)
        except NodeError as error:
            raise ExportError(f"the exported program can not be run: {place(error.node)}: {error}") from error


def _recorded(program: fx.GraphModule, inputs: Inputs, real: bool) -> tuple[list[tuple[Tensor, Any]], Types]:
    execution = Execution(program, real)
    recorder = Recorder(program)
    recorder.begin(execution)
    for tensor in tensors_within(inputs):
        recorder.add_input(tensor, "input of the model")
    types = Types()
    ops = 0

    def seen(node: fx.Node, result: Any) -> None:
        nonlocal ops
        if isinstance(result, Tensor):
            typing = recorder.typing(recorder.owned(result))
            types.axes[node] = typing.axes
            if typing.ranges is not None:
                types.ranges[node] = typing.ranges
        elif isinstance(result, (tuple, list)) and node.op == "call_function":
            types.axes[node] = [recorder.typing(recorder.owned(t)).axes for t in tensors_in(result)]
        elif isinstance(result, int):
            types.numbers[node] = int(result)
        if len(recorder.ops) > ops:
            ops, types.integers[node] = len(recorder.ops), recorder.last.integers

    walk(program, recorder, execution, inputs, seen)
    return [(t, recorder.states[n].axes) for n, t, _, _ in model_tensors(program)], types


def _kept(states: list[tuple[Tensor, Any]], names: Mapping[int, str], plan: Plan) -> dict[Atom, Indices]:
    """The units that the plan keeps of each atom of the program's types."""
    kept: dict[Atom, Indices] = {}
    read = [(names[id(t)], axes, plan.kept.get(names[id(t)], {})) for t, axes in states if id(t) in names]
    for _, axes, dims in read:
        for dim, there in dims.items():
            for atom in normal(axes[dim]).atoms:
                if atom not in kept:
                    units = np.unique(np.concatenate([c[there] for c in coordinates(axes[dim], atom)]))
                    kept[atom] = units[units >= 0]
    for name, axes, dims in read:
        for dim, axis in enumerate(axes):
            found = indices(axis, kept).tolist()
            if found != dims.get(dim, list(range(axis.size))):
                raise ExportError(
                    f"the plan does not fit the exported program: of dim {dim} of {name} it keeps "
                    f"{len(dims.get(dim, range(axis.size)))} indices, and the program's types {len(found)} or others"
                )
    return {a: units for a, units in kept.items() if len(units) < a.size}


def _cut(tensor: Tensor, name: str, axes: Any, kept: Mapping[Atom, Indices], slicer: Slicer) -> Tensor:
    """A tensor of the program as it is to be; what the model does not hold (a constant) goes by its types."""
    value = plain(tensor)
    if name:
        return like(tensor, formatted(tensor, slicer(name, value, fresh=True)))
    for dim, axis in enumerate(axes):
        value = value.index_select(dim, torch.from_numpy(indices(axis, kept)).to(value.device))
    return like(tensor, value.clone())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _agree(small: Rebuilt, wanted: Shapes, inputs: Inputs) -> None:
    """Raises where a node of the rewritten program does not give the sizes that its types have after the cut."""

    def seen(node: fx.Node, result: Any) -> None:
        if node in wanted:
            for i, (tensor, shape) in enumerate(zip(tensors_in(result), wanted[node], strict=True)):
                fixed = set(range(len(shape))) - data_sized(node, i)
                if tensor.dim() != len(shape) or any(tensor.shape[d] != shape[d] for d in fixed):
                    raise NodeError(node, ValueError(f"it gives the shape {list(tensor.shape)} and should give {list(shape)}"))

    def run(real: bool) -> None:
        execution = Execution(small, real)
        walk(small, OnStandIns(execution), execution, inputs, seen)

    try:
        try:
            run(real=False)
        except NodeError:
            run(real=True)  # control by data
    except NodeError as error:
        numbers = [a for a in error.node.args if isinstance(a, (int, list, tuple))]
        raise ConflictError(
            f"the program can not be rewritten for this plan at {place(error.node)}: {error}. What its numbers {numbers} mean "
            "for cut axes is not known: leave the groups that this op reads (ignore=...), or plan with on_conflict='freeze'"
        ) from error
