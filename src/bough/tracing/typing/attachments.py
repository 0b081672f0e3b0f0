"""What a module or tensor that no call reached would have to follow, by the widths of what it could read and write.

Nothing shows where such a part is used. But a module is called by the code of the module that holds it. This code sees what
enters that module, what it computes itself and what the modules that it calls return, not what these compute inside. What the
part reads or writes there has the width of its first or last layer. If one type that this code sees has this width, the part
follows it; if several have, these are frozen, so that the part goes on to fit. A tensor that is no module's weight may be
passed on, and used by all that is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bough.graph import ModuleCall, OpRecord, State, Unreached, value_axes
from bough.spaces import Atom, Space, freeze, normal, unify
from bough.tracing.capture.siblings import unreached_modules
from bough.tracing.typing.recorder import Recorder

Runs = Sequence[Mapping[str, Sequence[ModuleCall]]]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False, slots=True)
class _End:
    """An axis of a tensor of an unreached part by which the part may read values, or write them."""

    axis: Space
    reads: bool
    writes: bool


def bind_unreached(model: nn.Module, recorder: Recorder, runs: Runs, unread: Sequence[str]) -> list[Unreached]:
    """Make tensors that no run reads follow what they would be used with, or freeze that; return how each part is treated.

    Args:
        model: the model.
        recorder: of the runs.
        runs: the calls of modules in each run.
        unread: names of the tensors.
    """
    executed = frozenset(name for run in runs for name in run)
    states = _by_every_name(model, recorder)
    outer = unreached_modules(model, {n for op in recorder.ops for n in op.states if n}, executed)
    parts: dict[str, list[State]] = {}
    for name in unread:
        part = next((m for m in outer if name.startswith(f"{m}.")), name)
        parts.setdefault(part, []).append(recorder.states[name])
    for part in outer:  # modules that share all their tensors with others
        shared = all(name not in recorder.states for name in states if name.startswith(f"{part}."))
        if shared and any(end.reads for end in _ends_of_module(model, part, states)):
            parts.setdefault(part, [])
    around: dict[tuple[str, bool], _Visible] = {}
    found = []
    for part, tensors in parts.items():
        holder = part.rpartition(".")[0]
        while holder and holder not in executed:
            holder = holder.rpartition(".")[0]
        module = part in outer
        if (holder, module) not in around:
            around[holder, module] = _Visible(recorder.ops, runs, holder, within=not module)
        ends = list(_ends_of_module(model, part, states)) if module else [_End(axis, True, True) for axis in tensors[0].axes]
        ends = [end for end in ends if id(end.axis) not in recorder.tied]
        untied = [axis for state in tensors for axis in state.axes if id(axis) not in recorder.tied]
        visible = around[holder, module]
        found.append(Unreached(part, _bound(part, untied, ends, visible, bool(holder) or not module, module)))
    return found


def _bound(
    part: str, axes: Iterable[Space], ends: Sequence[_End], visible: _Visible, may_follow: bool, may_freeze: bool
) -> str:  # fmt: skip
    """Bind the axes of the tensors of one part; return how it is treated."""
    treatments = [visible.bind(end, part, may_follow, may_freeze) for end in ends]
    for axis in axes:
        if isinstance(axis, Atom) and axis.link is None:
            freeze(axis, f"no call reaches {part}")
    return (
        "; ".join(dict.fromkeys(t for t in treatments if t)) or "left as it is: nothing that is cut is as wide as what it takes"
    )


def _by_every_name(model: nn.Module, recorder: Recorder) -> dict[str, State]:
    """Return the states by all names that the model has for them: tied tensors have several."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    known = {id(tensor): recorder.states[name] for name, tensor in named if name in recorder.states}
    return {name: known[id(tensor)] for name, tensor in named if id(tensor) in known}


class _Visible:
    """The types of the values that the code of one module sees in its calls; of all inside, if `within` called ones."""

    def __init__(self, ops: Sequence[OpRecord], runs: Runs, module: str, within: bool) -> None:
        self.module = module
        module_calls = [p for run in runs for p in run.get(module, ())]
        spans = [(p.start, p.end) for p in module_calls] if module else [(0, len(ops))]
        types = value_axes(ops)
        others = (p for run in runs for name, calls in run.items() if not _encloses(name, module) for p in calls)
        inner = [] if within else _outermost(others)
        hidden = {i for p in inner for i in range(p.start, p.end)}
        inside = value_axes(ops[i] for start, end in spans for i in range(start, end) if i not in hidden)
        returned = (n for p in inner if any(a <= p.start and p.end <= b for a, b in spans) for n in p.returns)
        inside.update((n, types[n]) for n in returned if n in types)
        enters, leaves = {p.enters for p in module_calls}, {p.leaves for p in module_calls}
        between = [axes for n, axes in inside.items() if n not in enters and n not in leaves]
        self.readable = [*between, *(types[n] for n in enters if n in types)]
        self.writable = [*between, *(types[n] for n in leaves if n in types)]

    def bind(self, end: _End, part: str, may_follow: bool, may_freeze: bool) -> str:
        """Make an axis follow the one type of its size that it can stand for, or freeze several; return what was done.

        Args:
            end: the axis.
            part: what it belongs to.
            may_follow: whether one type of this size is enough to say that it is the one.
            may_freeze: whether the part certainly reads or writes values here. A module does; a single tensor may be used in
                any way, so it is only named.
        """
        size, seen = end.axis.size, list[Space]()
        values = [*(self.readable if end.reads else ()), *(self.writable if end.writes else ())]
        for axis in (normal(a) for axes in values for a in axes if a.size == size > 1):
            if axis not in seen:
                seen.append(axis)
        free = [axis for axis in seen if any(atom.reason is None for atom in axis.atoms)]
        where = self.module or "the model"
        if not free:
            return ""
        if len(seen) == 1 and may_follow:
            unify(end.axis, seen[0], f"{part}, which no call reaches")
            return f"cut with the one axis of {size} units in {where}"
        if not may_freeze:
            return f"left as it is: which axis of {size} units in {where} it goes with is not known; give a call that reads it"
        for axis in free:
            freeze(axis, f"{part}, which no call reaches, may read or write {size} units here: give a call that reaches it")
        return f"axes of {size} units in {where}, which it may read or write, are not cut"


def _encloses(name: str, module: str) -> bool:
    """Return whether a module is `module` or holds it."""
    return name == module or module.startswith(f"{name}.")


def _outermost(calls: Iterable[ModuleCall]) -> list[ModuleCall]:
    """Return the calls that are made inside no other one."""
    found: list[ModuleCall] = []
    for call in sorted(calls, key=lambda p: (p.start, -p.end)):
        if not found or call.end > found[-1].end or call.start == call.end:
            found.append(call)
    return found


def _ends_of_module(model: nn.Module, name: str, states: Mapping[str, State]) -> Iterator[_End]:
    """Yield the axes by which a module reads and writes.

    These are the input of its first layer and the output of its last one; and of the others the inputs of a size that no
    layer of the module gives, and the outputs of a size that none takes.
    """
    layers = [list(_ends_of_layer(n, m, states)) for n, m in _layers(model, name)]
    given = {e.axis.size for layer in layers for e in layer if e.writes}
    taken = {e.axis.size for layer in layers for e in layer if e.reads}
    for i, layer in enumerate(layers):
        for end in layer:
            reads = end.reads and (i == 0 or end.axis.size not in given)
            writes = end.writes and (i == len(layers) - 1 or end.axis.size not in taken)
            if reads or writes:
                yield _End(end.axis, reads, writes)


def _layers(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for inner, module in model.get_submodule(name).named_modules(prefix=name):
        if any(True for _ in module.parameters(recurse=False)):
            yield inner, module


def _ends_of_layer(name: str, module: nn.Module, states: Mapping[str, State]) -> Iterator[_End]:
    """Yield the axes by which a layer reads and writes, of its tensors that have a type."""
    for key in (*module._parameters, *module._buffers):
        state = states.get(f"{name}.{key}")
        for dim, axis in enumerate(state.axes if state is not None else ()):
            reads, writes = _role(module, key, dim)
            if axis.size > 1 and (reads or writes):
                yield _End(axis, reads, writes)


def _role(module: nn.Module, key: str, dim: int) -> tuple[bool, bool]:
    """Return whether a dim of a layer's tensor is of what the layer reads, and of what it gives."""
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and getattr(module, "groups", 1) == 1:
        return (dim == 1, dim == 0) if key == "weight" else (False, True)
    if isinstance(module, _TRANSPOSED) and module.groups == 1:
        return (dim == 0, dim == 1) if key == "weight" else (False, True)
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):  # the channels of each group are not an axis of the input
        return (True, True) if dim == 0 else (False, False)
    if isinstance(module, nn.Embedding):
        return False, dim == 1
    if isinstance(module, nn.RNNBase):
        return key.startswith("weight_ih_l0") and dim == 1, False
    return True, True
