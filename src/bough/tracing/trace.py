"""`trace`: run a model once and type every axis of every tensor in it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from inspect import Signature, signature
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.errors import TraceError
from bough.graph import Frozen, Graph, Group, Member, OpRecord, State, Storage
from bough.rules import KERNEL
from bough.spaces import Atom, freeze, innermost, normal
from bough.tracing.caches import fresh_caches
from bough.tracing.contractions import read_by
from bough.tracing.copies import bind_copies
from bough.tracing.execution import Execution
from bough.tracing.fingerprint import fingerprint
from bough.tracing.held import substituted
from bough.tracing.inputs import with_tensors
from bough.tracing.layers import Watch
from bough.tracing.provenance import Attribute, AxisSize, Equation, Path, TracedInt, comparisons
from bough.tracing.ragged import ragged
from bough.tracing.randomness import HIGH, LOW, fixed_rng, unchanged_rng
from bough.tracing.recorder import LEAVING, Recorder
from bough.tracing.selection import Selection, left_alone, selectors
from bough.tracing.stream import Handler, Stream
from bough.tracing.tree import Returned, forward_parameters, tensors_within
from bough.tracing.wrapped import eagerly, traceable

UNUSED = "never summed over: nothing tells what removing its units would mean"


def trace(
    model: nn.Module, example_inputs: Any, *, ignore: Selection = (), only: Selection | None = None, real: bool = False
) -> Graph:  # fmt: skip
    """Runs `model` once, in the mode it is in, and gives its typed graph; the model stays exactly as it was.

    Args:
        model: any module. Weights may be on any device, the meta device included.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; shapes matter,
            values only where the model's control flow reads them.
        ignore: what to leave alone, one entry or several: names or glob patterns of modules, parameters and groups, modules
            of `model`, or types of modules, such as `["head", "layer1.*", model.stem, nn.Embedding]`. Every dim of the tensors
            named stays, so a group that has any of these dims is frozen ("ignored: head").
        only: the opposite, entries of the same kinds: a group is cut only if nothing but what is named computes its units.
            What reads, scales, shifts or normalizes these units follows without being named. `ignore` goes before `only`.
        real: run on real values from the start (otherwise only where shapes do not carry the run).

    Raises:
        TraceError: the model can not be run on these inputs, or holds what can not be traced (sharded, quantized or
            scripted parts), or returns no tensor, or an object in which tensors cannot be found (see `output_tensors`).
            Wrappers around it (`torch.compile`, `DistributedDataParallel`, ...) are looked through.
        PlanError: an entry of `ignore` or `only` names nothing, or `only` leaves nothing to cut.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(g.name, g.kind, g.size) for g in bough.trace(net, torch.randn(1, 4)).groups]
        [('0', 'neuron', 8)]
    """
    check_arguments(trace, locals())
    ignored, selected = selectors(ignore, "ignore"), None if only is None else selectors(only, "only")
    model = traceable(model)
    args, kwargs = split_inputs(example_inputs)
    _check_inputs(args, kwargs)
    draw = HIGH
    try:
        recorder, result, watch = _recorded(model, args, kwargs, real, draw)
    except TraceError:
        raise
    except Exception:  # shapes alone do not carry the run: control flow reads values, or the model can not run at all
        try:
            recorder, result, watch = _recorded(model, args, kwargs, True, draw)
            real = True
        except TraceError:
            raise
        except Exception as error:
            shapes = ", ".join(_describe(v) for v in (*args, *kwargs.values()))
            raise TraceError(
                f"{type(model).__name__} can not be run on the example inputs ({shapes}): "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
                f"{_how_to_give(model, kwargs)}"
            ) from error
    if recorder.execution.drew and _unread(recorder):  # perhaps of layers that are run where the draw is low
        other = _recorded(model, args, kwargs, real, LOW)
        if len(_unread(other[0])) < len(_unread(recorder)):
            (recorder, result, watch), draw = other, LOW
    outputs = _freeze_outputs(recorder, result)
    if not any(isinstance(leaf, Tensor) for _, leaf in result.leaves):
        raise TraceError(
            f"{type(model).__name__} returns no tensor: its output is of type {result.kind}; return tensors, or "
            "dicts, tuples, dataclasses or plain objects that hold them"
        )
    notes = ["traced with real values: the model's control flow depends on data"] if real else []
    numbers = {recorder.value(recorder.owned(t)).number for t in outputs}
    ops, storages = tuple(recorder.ops), _storages(recorder, outputs)
    notes += _other_mode(recorder, watch, args, kwargs, real, draw)
    recorder.equations += bind_copies(model, recorder.equations)
    groups, frozen = _groups(recorder, ops)
    graph = Graph(
        model, args, kwargs, ops, storages, recorder.states, tuple(recorder.equations), groups, frozen,
        tuple(recorder.unknown), real, fingerprint(model), notes, watch.layers(numbers),
        ragged=ragged(groups, recorder.states, recorder.ops), second=tuple(recorder.ops[len(ops) :]),
        modes={n: m.training for n, m in model.named_modules()}, draw=draw,
    )  # fmt: skip
    return _frozen(graph, left_alone(graph, ignored, selected))


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as (args, kwargs)."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, which looks at all that was made again and again, and finds that it is in use."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def run(
    handler: Handler, execution: Execution, model: nn.Module, args: Any, kwargs: Any, change: Any,
    prepare: Callable[[], None] | None = None, first: int = 0,
) -> Returned:  # fmt: skip
    """Runs the model under `handler`, with held integers as `change` says; returns what is found in what it returns.

    `prepare` may change instance dictionaries and lists of modules before the run; this is undone, too. `first` is the
    number of the first op. Where the execution says what is drawn, all random numbers are the same in every run.
    """
    args, kwargs = with_tensors((args, kwargs), execution.stand_in)
    collected = nullcontext() if execution.real else uncollected()
    drawn = unchanged_rng() if execution.draw is None else fixed_rng()
    with collected, drawn, torch.no_grad(), substituted(model, change):
        if prepare is not None:
            prepare()
        with Stream(handler, first), eagerly(), fresh_caches(model):
            return Returned.of(model(*args, **kwargs), forward_parameters(model))


def _recorded(model: nn.Module, args: Any, kwargs: Any, real: bool, draw: float) -> tuple[Recorder, Returned, Watch]:
    recorder = Recorder(model)
    watch = Watch(model, recorder)
    return recorder, _record(recorder, watch, args, kwargs, real, draw, watch), watch


def _record(
    recorder: Recorder, watch: Watch, args: Any, kwargs: Any, real: bool, draw: float, prepare: Callable[[], None]
) -> Returned:  # fmt: skip
    """Records one run, and gives what the model returns."""
    execution = Execution(watch.model, real, draw=draw)
    recorder.begin(execution)
    watch.begin()
    for tensor in tensors_within((args, kwargs)):
        recorder.add_input(tensor, "input of the model")

    def traced(path: Path, n: int) -> int:
        return TracedInt(n, Attribute(path, n))

    with comparisons() as compared:
        result = run(recorder, execution, watch.model, args, kwargs, traced, prepare, len(recorder.ops))
    for a, b in compared:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Attribute) and isinstance(other, AxisSize):
                recorder.equations.append(Equation(one, other.space, "a comparison in the model's Python"))
    return result


def _freeze_outputs(recorder: Recorder, result: Returned) -> list[Tensor]:
    """Freeze every axis of what the model returns, and the units that numbers in it refer to; return its tensors."""
    outputs = list(result.tensors().values())
    if result.numbers:
        for axis in (a for op in recorder.ops if op.name in LEAVING for axes in op.arguments for a in axes):
            freeze(axis, "output of the model, as numbers outside of tensors")
    for tensor in outputs:
        typing = recorder.typing(recorder.owned(tensor))
        for axis in typing.axes:
            if axis.size > 1:
                freeze(axis, "output of the model")
        if typing.ranges is not None:
            freeze(typing.ranges, "numbered by an output of the model")
    return outputs


def _unread(recorder: Recorder) -> list[str]:
    """Return the parameters that no recorded op reads."""
    read = {name for op in recorder.ops for name in op.states}
    return [n for n, s in recorder.states.items() if s.parameter and n not in read]


def _other_mode(recorder: Recorder, watch: Watch, args: Any, kwargs: Any, real: bool, draw: float) -> list[str]:
    """Where some parameters are not read, as those of heads for training only: records the run in the other mode, too."""
    ops, model = len(recorder.ops), watch.model
    unread = _unread(recorder)
    if not unread:
        return []

    def prepare() -> None:
        watch()
        switch(model)

    try:
        _freeze_outputs(recorder, _record(recorder, watch, args, kwargs, real, draw, prepare))
    except Exception as error:
        del recorder.ops[ops:]
        watch.forget()
        mode = "evaluation" if model.training else "training"
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return [f"{unread[0]} (of {len(unread)} such parameters) is not read, and the model does not run in {mode} mode: {why}"]
    if unread == _unread(recorder):  # the other mode reads no more
        del recorder.ops[ops:]
        watch.forget()
    return []


def switch(model: nn.Module) -> None:
    """Puts all modules into the mode that the model is not in, by their instance dictionaries."""
    other = not model.training
    for module in model.modules():
        module.__dict__["training"] = other


def _how_to_give(model: nn.Module, kwargs: Mapping[str, Any]) -> str:
    """Return what to do about inputs that do not run: a dict is taken as keyword arguments, and forward may want the dict."""
    parameters = signature(model.forward)
    if kwargs and not _binds(parameters, **kwargs) and _binds(parameters, kwargs):
        return (
            "A dict gives keyword arguments; if forward takes the dict itself, give a tuple with it: example_inputs=(inputs,)"
        )
    return f"Check that model({'**' if kwargs else '*'}example_inputs) works."


def _binds(parameters: Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        parameters.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _describe(value: Any) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _check_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for tensor in tensors_within((args, kwargs)):
        if tensor.is_nested:
            raise TraceError(
                "an example input is a nested tensor, whose rows have sizes of their own, which bough can not follow: give a "
                "padded tensor, with a mask where the model takes one"
            )


def _frozen(graph: Graph, reasons: Mapping[str, str]) -> Graph:
    """Return the graph with the groups in `reasons` frozen."""
    if not reasons:
        return graph
    for g in graph.groups:
        if g.name in reasons:
            freeze(g.atom, reasons[g.name])
    groups = tuple(g for g in graph.groups if g.name not in reasons)
    frozen = (Frozen(g.name, g.size, reasons[g.name], g.members, g.atom) for g in graph.groups if g.name in reasons)
    return replace(
        graph, groups=groups, frozen=(*graph.frozen, *frozen), ragged=ragged(groups, graph.states, (*graph.ops, *graph.second))
    )  # fmt: skip


def _storages(recorder: Recorder, outputs: list[Tensor]) -> tuple[Storage, ...]:
    """Memory of the run; what the model returns lives to its end."""
    lasting = {recorder.value(recorder.owned(t)).storage for t in outputs}
    last = len(recorder.ops)
    return tuple(
        Storage(axes, dtype.itemsize, born, last if i in lasting else dies, _floats(dtype))
        for i, (axes, dtype, born, dies) in enumerate(recorder.storages)
    )


def _floats(dtype: torch.dtype) -> int:
    """How many floating-point numbers an element is: a complex one two, an integer none."""
    return 2 if dtype.is_complex else int(dtype.is_floating_point)


def _groups(recorder: Recorder, ops: tuple[OpRecord, ...]) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    members: dict[Atom, list[Member]] = {}
    in_parameter: set[Atom] = set()
    for state in recorder.states.values():
        for dim, axis in enumerate(state.axes):
            for atom in normal(axis).atoms:
                members.setdefault(atom, []).append(Member(state.name, dim))
                if state.parameter:
                    in_parameter.add(atom)
    marks: dict[Atom, set[str]] = {}
    for kind, space in recorder.context.marks:
        for atom in normal(space).atoms:
            marks.setdefault(atom, set()).add(kind)
    multiples: dict[Atom, int] = {}
    for space, of in recorder.context.multiples:
        for atom in innermost(space):
            multiples[atom] = lcm(multiples.get(atom, 1), of)
    minima: dict[Atom, int] = {}
    for space, least in recorder.context.minima:
        whole = normal(space)
        if isinstance(whole, Atom):
            minima[whole] = max(minima.get(whole, 1), least)
    renormalized = {a for op in ops for s in op.renormalized for a in normal(s).atoms}
    readers = read_by(ops)
    groups: list[Group] = []
    frozen: list[Frozen] = []
    used: dict[str, int] = {}
    for atom, places in members.items():
        if atom not in in_parameter or atom.size < 2 or atom.reason is KERNEL:
            continue
        kind = _kind(marks.get(atom, set()), places, recorder.states)
        if atom.reason is None and "consumed" not in marks.get(atom, ()):
            atom.reason = UNUSED
        name = _name(atom, kind, places, recorder.states, used)
        if atom.reason is None:
            exact = atom not in renormalized
            limits = multiples.get(atom, 1), minima.get(atom, 1)
            groups.append(Group(name, kind, atom.size, exact, tuple(places), atom, *limits, max(readers[atom], 1)))
        else:
            frozen.append(Frozen(name, atom.size, str(atom.reason), tuple(places), atom))
    return tuple(groups), tuple(frozen)


def _kind(marks: set[str], places: list[Member], states: dict[str, State]) -> str:
    for kind in ("expert", "head_dim", "head", "channel"):
        if kind in marks:
            return kind
    return "hidden" if "residual" in marks else "neuron"


def _name(atom: Atom, kind: str, places: list[Member], states: dict[str, State], used: dict[str, int]) -> str:
    first = next((m for m in places if states[m.name].parameter and m.dim == 0), places[0])
    base = first.name.rpartition(".")[0] or first.name
    if kind in ("head", "head_dim", "expert"):
        base += f"/{kind}"
    used[base] = used.get(base, 0) + 1
    return base if used[base] == 1 else f"{base}#{used[base]}"
