"""`trace`: run a model once and type every axis of every tensor in it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from inspect import Signature, signature
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calls import FORWARD, Call, as_calls
from bough.errors import TraceError
from bough.graph import Beside, Frozen, Graph, Group, Member, OpRecord, RecordedRun, State, Storage, Unreached
from bough.rules import KERNEL, Reason
from bough.spaces import Atom, Space, Sum, freeze, innermost, normal
from bough.tracing.attachments import bind_unreached
from bough.tracing.caches import fresh_caches
from bough.tracing.contractions import read_by
from bough.tracing.copies import bind_copies
from bough.tracing.execution import Execution
from bough.tracing.fingerprint import fingerprint
from bough.tracing.held import substituted
from bough.tracing.in_a_row import InARow, carries_state, freeze_moving_positions, in_a_row
from bough.tracing.inputs import call_of, with_tensors
from bough.tracing.layers import Watch
from bough.tracing.provenance import Attribute, AxisSize, Equation, Path, TracedInt, comparisons
from bough.tracing.ragged import ragged
from bough.tracing.randomness import HIGH, LOW, fixed_rng, unchanged_rng
from bough.tracing.recorder import READING, Recorder
from bough.tracing.selection import Selection, left_alone, selectors
from bough.tracing.siblings import Failed, Ran, no_output, run_beside
from bough.tracing.state import bind_state, held_state, same_form
from bough.tracing.stream import Handler, Stream
from bough.tracing.ties import TiedPair, Ties, following, modules_beside, tie_names, tied_pairs, unify_tied
from bough.tracing.tree import Returned, state_names, tensors_within
from bough.tracing.unreached import alike, siblings, tie_beside, tie_siblings, tie_tensors
from bough.tracing.wrapped import eagerly, traceable

UNUSED = "never summed over: nothing tells what removing its units would mean"


def trace(
    model: nn.Module, example_inputs: Any, *, ignore: Selection = (), only: Selection | None = None, tie: Ties | None = None,
    real: bool = False,
) -> Graph:  # fmt: skip
    """Runs `model` once, in the mode it is in, and gives its typed graph; the model stays exactly as it was.

    Args:
        model: any module. Weights may be on any device, the meta device included.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; shapes matter,
            values only where the model's control flow reads them. Or several calls, as a list of `bough.Call`: other arguments,
            other shapes, other methods of the model. What is cut fits all of them; costs, layers that can be left out and
            criteria on data are of the first one. See docs/calls.md.
        ignore: what to leave alone, one entry or several: names or glob patterns of modules, parameters and groups, modules
            of `model`, or types of modules, such as `["head", "layer1.*", model.stem, nn.Embedding]`. Every dim of the tensors
            named stays, so a group that has any of these dims is frozen ("ignored: head").
        only: the opposite, entries of the same kinds: a group is cut only if nothing but what is named computes its units.
            What reads, scales, shifts or normalizes these units follows without being named. `ignore` goes before `only`.
        tie: parameters and buffers that must be cut alike though nothing in `forward` says so, such as those of a teacher
            that is a moving average of its student: `{"teacher.*": "student.*"}` ties the tensors whose names differ only so.
            Keys and values are names or patterns of modules and tensors (each `*` stands for the same text on both sides),
            modules of `model`, or dims, `{("q_a.weight", 0): ("q_b.weight", 0)}`. A tied module that no call reaches is run on
            the inputs of its partner. A tensor named by a key without a counterpart is listed in the notes.
        real: run on real values from the start (otherwise only where shapes do not carry the run).

    Raises:
        TraceError: the model can not be run on these inputs, or holds what can not be traced (sharded, quantized or
            scripted parts), or returns no tensor, or an object in which tensors cannot be found (see `output_tensors`).
            Wrappers around it (`torch.compile`, `DistributedDataParallel`, ...) are looked through.
        PlanError: an entry of `ignore`, `only` or `tie` names nothing, `only` leaves nothing to cut, or what is tied has
            different shapes.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(g.name, g.kind, g.size) for g in bough.trace(net, torch.randn(1, 4)).groups]
        [('0', 'neuron', 8)]
    """
    check_arguments(trace, locals())
    ignored, selected = selectors(ignore, "ignore"), None if only is None else selectors(only, "only")
    model, calls = traceable(model), as_calls(example_inputs)
    pairs, lone = tied_pairs(model, tie or {})
    for call in calls:
        _check_inputs(call)
    recording = _recorded(model, calls, real, HIGH, pairs)
    if recording.drew and _unread(recording.recorder):  # perhaps of layers that are run where the draw is low
        other = _recorded(model, calls, real, LOW, pairs)
        if len(_unread(other.recorder)) < len(_unread(recording.recorder)):
            recording = other
    notes = _record_in_a_row(recording)
    recorder, runs = recording.recorder, recording.runs
    outputs = [_freeze_outputs(recorder, run, result) for run, result in zip(runs, recording.results, strict=True)]
    returned = [isinstance(leaf, Tensor) for result in recording.results for _, leaf in result.leaves]
    if not any(returned) and all(call.method == FORWARD for call in calls):
        raise TraceError(
            f"{type(model).__name__} returns no tensor: its output is of type {recording.results[0].kind}; return tensors, or "
            "dicts, tuples, dataclasses or plain objects that hold them"
        )
    notes += lone + _real_notes(recording.calls, runs)
    numbers = {recorder.value(recorder.owned(t)).number for tensors in outputs for t in tensors}
    ops, storages = tuple(recorder.ops[: runs[0].end]), _storages(recording, outputs[0])
    notes += _other_mode(recording)
    notes += [str(u) for u in _beside_tied(recording, pairs)]
    unreached = _unreached(recording, pairs)
    in_mode = tuple(op for r in runs if not r.other_mode for op in recorder.ops[r.start : r.end])
    recorder.equations += bind_copies(model, recorder.equations)
    groups, frozen = _groups(recorder, ops, in_mode)
    graph = Graph(
        model, recording.calls, tuple(runs), ops, storages, recorder.states, tuple(recorder.equations), groups, frozen,
        tuple(recorder.unknown), fingerprint(model), notes, recording.watch.layers(numbers),
        ragged=ragged(groups, recorder.states, recorder.ops), further_ops=tuple(recorder.ops[len(ops) :]),
        modes={n: m.training for n, m in model.named_modules()}, draw=recording.draw,
        written=frozenset(recording.written), tie=tuple(tie_names(model, tie or {}).items()),
        unreached=tuple(unreached),
    )  # fmt: skip
    return with_frozen(graph, left_alone(graph, ignored, selected))


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
    handler: Handler, execution: Execution, model: nn.Module, call: Call, change: Any,
    prepare: Callable[[], None] | None = None, first: int = 0, after: Callable[[], None] | None = None,
) -> Returned:  # fmt: skip
    """Make a call of the model under `handler`, with held integers as `change` says; return what is found in its output.

    `prepare` may change instance dictionaries and lists of modules before the run; this is undone, too. `first` is the
    number of the first op. `after` is called when the model has run, before what it left on its modules is undone. Where the
    execution says what is drawn, all random numbers are the same in every run.
    """
    args, kwargs = with_tensors((call.args, call.kwargs), execution.stand_in)
    collected = nullcontext() if execution.real else uncollected()
    drawn = unchanged_rng() if execution.draw is None else fixed_rng()
    with collected, drawn, torch.inference_mode(False), torch.no_grad(), substituted(model, change):
        if prepare is not None:
            prepare()
        method = call.bound(model)
        try:
            with fresh_caches(model):
                with Stream(handler, first), eagerly():
                    returned = Returned.of(method(*args, **kwargs), state_names(model, method))
                if after is not None:
                    after()
                return returned
        finally:
            execution.restore()


@dataclass(eq=False, slots=True)
class _Recording:
    """The recorded runs of some calls of a model, and what each returned."""

    recorder: Recorder
    watch: Watch
    calls: tuple[Call, ...]
    draw: float
    runs: list[RecordedRun] = field(default_factory=list)
    results: list[Returned] = field(default_factory=list)
    drew: bool = False
    first_storages: int = 0  # number of storages of the first run
    written: set[str] = field(default_factory=set)  # names of the model's tensors whose values the runs change
    stateful: dict[int, bool] = field(default_factory=dict)  # indices of calls that leave state: whether it is surely read


def _recorded(
    model: nn.Module, calls: tuple[Call, ...], real: bool, draw: float, tied: Sequence[TiedPair] = ()
) -> _Recording:  # fmt: skip
    """Record the calls one after the other, each from the model as it is, so that all of them bind the same types.

    A call that shapes alone do not carry, because its control flow reads values, is recorded on real values.
    """
    needs_values = [real] * len(calls)
    while True:
        recorder = Recorder(model)
        unify_tied(recorder, tied)
        recording = _Recording(recorder, Watch(model, recorder), calls, draw)
        failed = _record_all(recording, needs_values)
        if failed is None:
            return recording
        needs_values[failed] = True


def _record_all(recording: _Recording, needs_values: list[bool]) -> int | None:
    """Record all calls; return the index of a call that shapes alone do not carry."""
    for i, real in enumerate(needs_values):
        try:
            recording.results.append(_record(recording, RecordedRun(i, 0, 0, real)))
        except TraceError:
            raise
        except Exception as error:  # control flow reads values, or the model can not run at all
            if real:
                raise TraceError(_not_run(recording.watch.model, recording.calls, i, error)) from error
            return i
    return None


def _record(recording: _Recording, planned: RecordedRun, ran: Ran = no_output, failed: Failed | None = None) -> Returned:
    """Record a run as `planned` says, but for its place among the ops, and return what the call returns.

    `ran` and `failed` are as for `run_beside`.
    """
    recorder, watch, call = recording.recorder, recording.watch, call_of(recording.calls, planned)
    execution = Execution(watch.model, planned.real, draw=recording.draw)
    start = len(recorder.ops)
    recorder.begin(execution)
    watch.begin()
    for tensor in tensors_within((call.args, call.kwargs)):
        recorder.add_input(tensor, "input of the model")

    def traced(path: Path, n: int) -> int:
        return TracedInt(n, Attribute(path, n))

    before = held_state(watch.model)

    def bind() -> None:
        after = held_state(watch.model)
        read = {name for op in recorder.ops[start:] for name in op.states}
        replaced = read.intersection(bind_state(recorder, before, after))
        written = {name for name in read & recorder.written if recorder.states[name].axes}
        if not (planned.other_mode or planned.beside) and (replaced or written or not same_form(before, after)):
            recording.stateful[planned.call] = bool(written)

    def prepare() -> None:
        run_beside(watch.model, planned.beside, ran, failed)
        watch()
        if planned.other_mode:
            switch(watch.model)

    with comparisons() as compared:
        result = run(recorder, execution, watch.model, call, traced, prepare, start, bind)
    for a, b in compared:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Attribute) and isinstance(other, AxisSize):
                recorder.equations.append(Equation(one, other.space, "a comparison in the model's Python"))
    if not recording.runs:
        recording.first_storages = len(recorder.storages)
    recording.runs.append(replace(planned, start=start, end=len(recorder.ops)))
    recording.drew |= execution.drew
    recording.written |= recorder.written
    return result


def _record_in_a_row(recording: _Recording) -> list[str]:
    """Record calls that leave state behind several times in a row, too: what a later call finds binds the types as well."""
    recorder, watch, notes = recording.recorder, recording.watch, list[str]()
    if any(isinstance(call.method, InARow) for call in recording.calls):
        return notes
    for at in [i for i in range(len(recording.calls)) if i in recording.stateful]:
        once, ops, runs, given = recording.runs[at], len(recorder.ops), len(recording.runs), recording.calls
        recording.calls = (*given, in_a_row(given[at]))
        for real in dict.fromkeys((once.real, True)):
            try:
                result, why = _record(recording, RecordedRun(len(given), 0, 0, real)), ""
                break
            except Exception as error:
                why = _line_of(error)
                del recorder.ops[ops:]
                watch.forget()
        single = recorder.ops[once.start : once.end]
        if why:
            notes.append(f"{given[at]} leaves state on the model, and can not be made again on the same inputs: {why}")
        elif recording.stateful[at] or carries_state(single, recorder.ops[ops:]):
            freeze_moving_positions(single, recorder.ops[ops:])
            recording.results.append(result)
            continue
        else:
            watch.forget()
        recording.calls = given
        del recorder.ops[ops:]
        del recording.runs[runs:]
    return notes


def _freeze_outputs(recorder: Recorder, recorded: RecordedRun, result: Returned) -> list[Tensor]:
    """Freeze every axis of the tensors that a call returns, and the units that their values number; return the tensors."""
    outputs = list(result.tensors().values())
    ops = recorder.ops[recorded.start : recorded.end]
    if not outputs:  # a number or text that was chosen by a number
        for space in (s for op in ops if op.name in READING for s in op.ranges if s is not None):
            freeze(space, "numbered by an output of the model")
    for tensor in outputs:
        typing = recorder.typing(recorder.owned(tensor))
        for axis in typing.axes:
            if axis.size > 1:
                freeze(axis, "output of the model")
        if typing.ranges is not None:
            freeze(typing.ranges, "numbered by an output of the model")
    return outputs


def _real_notes(calls: tuple[Call, ...], runs: list[RecordedRun]) -> list[str]:
    """Say which calls were recorded on real values."""
    real = [str(calls[r.call]) for r in runs if r.real]
    which = f" of {', '.join(real)}" if len(calls) > 1 else ""
    return [f"traced with real values: the model's control flow{which} depends on data"] if real else []


def _unread(recorder: Recorder) -> list[str]:
    """Return the parameters, and the saved buffers of several floats, that no recorded op reads, under any name."""
    read = {name for op in recorder.ops for name in op.states if name}
    shared = {id(recorder.states[name].axes) for name in read}  # tensors that share memory share their axes
    return [s.name for s in recorder.states.values() if _is_learned(s) and id(s.axes) not in shared]


def _is_learned(state: State) -> bool:
    """Return whether a tensor is a parameter, or a buffer that holds what a parameter may, such as a codebook."""
    return state.parameter or (state.saved and state.floating and any(a.size > 1 for a in state.axes))


def _other_mode(recording: _Recording) -> list[str]:
    """Where some parameters are not read, as those of heads for training only: record the calls in the other mode, too."""
    recorder, watch, notes = recording.recorder, recording.watch, list[str]()
    for recorded in recording.runs[: len(recording.calls)]:
        unread = _unread(recorder)
        if not unread:
            return []
        for doubled in (False, True):  # batch norms refuse a batch of one where each channel has one value
            ops, runs = len(recorder.ops), len(recording.runs)
            try:
                result = _record(recording, replace(recorded, other_mode=True, doubled=doubled))
                _freeze_outputs(recorder, recording.runs[-1], result)
                error = None
            except Exception as problem:
                error = problem
            if error is not None or unread == _unread(recorder):  # the other mode reads no more
                del recorder.ops[ops:]
                del recording.runs[runs:]
                watch.forget()
            if error is None:
                break
            mode = "evaluation" if watch.model.training else "training"
            notes = [notes[0] if doubled else f"the model does not run in {mode} mode: {_line_of(error)}"]
    return notes if _unread(recorder) else []


def _unreached(recording: _Recording, tied: Sequence[TiedPair]) -> list[Unreached]:
    """Type what no call reached, by its siblings first; return how each part is treated."""
    model, recorder, runs = recording.watch.model, recording.recorder, recording.watch.runs
    found = _beside(recording, siblings(model, recorder, frozenset(name for run in runs for name in run)))
    found += following(tied, _unread(recorder))
    found += tie_tensors(model, recorder, _without(_unread(recorder), found))
    found += bind_unreached(model, recorder, runs, _without(_unread(recorder), found))
    return found


def _beside_tied(recording: _Recording, tied: Sequence[TiedPair]) -> list[Unreached]:
    """Run modules that no call reached on the inputs of those that the user ties them to; return those that run there."""
    read = {name for op in recording.recorder.ops for name in op.states if name}
    called = frozenset(name for run in recording.watch.runs for name in run)
    return _beside(recording, modules_beside(recording.watch.model, tied, read, called), by_hand=True)


def _without(names: Sequence[str], treated: Sequence[Unreached]) -> list[str]:
    known = {u.name for u in treated}
    return [name for name in names if name not in known]


def _beside(recording: _Recording, pairs: Mapping[str, tuple[str, ...]], by_hand: bool = False) -> list[Unreached]:
    """Run modules that no call reached on the inputs of others that a call reached; return those that run there.

    A module that does not run on these inputs is left out, and the run recorded once more.

    Args:
        recording: the runs so far.
        pairs: {module that no call reached: its called siblings, the first of which gives the inputs}.
        by_hand: the pairs are the user's ties: they share the types of their outputs, but need not follow one another.
    """
    found: list[Unreached] = []
    calls = zip(recording.watch.runs, recording.runs, strict=True)
    called = [frozenset() if recorded.beside else frozenset(run) for run, recorded in calls]
    waiting = dict(pairs)
    for at, recorded in enumerate(list(recording.runs)):
        here = tuple((name, others) for name, others in waiting.items() if others[0] in called[at])
        for name, _ in here:
            del waiting[name]
        beside = tuple(Beside(name, others[0]) for name, others in here)
        while beside:
            failed = _recorded_beside(recording, replace(recorded, beside=beside), by_hand)
            if not failed:
                break
            beside = tuple(pair for pair in beside if pair.name not in failed)
        ran = {pair.name for pair in beside}
        for name, others in here:
            if name in ran:
                if not by_hand:
                    tie_siblings(recording.recorder, recording.watch.runs, others)
                found.append(Unreached(name, f"cut as {others[0]} is, on whose inputs it was run"))
    return found


def _recorded_beside(recording: _Recording, recorded: RecordedRun, by_hand: bool) -> set[str]:
    """Record a run with modules beside their siblings; return those that do not run there, for which nothing is recorded."""
    recorder, failed, ops = recording.recorder, set[str](), len(recording.recorder.ops)
    outputs: dict[str, dict[str, tuple[Space, ...]]] = {}

    def ran(name: str, sibling: str, given: Any, result: Any, output: Any) -> None:
        if alike(recording.watch.model, name, sibling, result, output):
            tie_beside(recorder, name, sibling, () if by_hand else given, result, output)
            tensors = Returned.of(output).tensors()
            outputs[name] = {path: recorder.typing(recorder.owned(t)).axes for path, t in tensors.items()}
        else:
            failed.add(name)

    result = _record(recording, recorded, ran, lambda name, error: failed.add(name))
    if failed:
        del recorder.ops[ops:]
        recording.runs.pop()
        recording.watch.forget()
    else:
        _freeze_outputs(recorder, recording.runs[-1], result)
        beside = tuple(replace(pair, outputs=outputs.get(pair.name, {})) for pair in recorded.beside)
        recording.runs[-1] = replace(recording.runs[-1], beside=beside)
    return failed


def _line_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def switch(model: nn.Module) -> None:
    """Puts all modules into the mode that the model is not in, by their instance dictionaries."""
    other = not model.training
    for module in model.modules():
        module.__dict__["training"] = other


def _not_run(model: nn.Module, calls: tuple[Call, ...], at: int, error: Exception) -> str:
    """Return the message for a call that can not be made."""
    call, what = calls[at], f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if len(calls) > 1 or call.method != FORWARD:
        number = f"call {at + 1} of {len(calls)}, " if len(calls) > 1 else ""
        return f"{type(model).__name__} can not make {number}{call}: {what}. Check that call(model) works for this call."
    shapes = ", ".join(_describe(v) for v in (*call.args, *call.kwargs.values()))
    return f"{type(model).__name__} can not be run on the example inputs ({shapes}): {what}. {_how_to_give(model, call.kwargs)}"


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


def _check_inputs(call: Call) -> None:
    for tensor in tensors_within((call.args, call.kwargs)):
        if tensor.is_nested:
            raise TraceError(
                "an example input is a nested tensor, whose rows have sizes of their own, which bough can not follow: give a "
                "padded tensor, with a mask where the model takes one"
            )


def with_frozen(graph: Graph, reasons: Mapping[str, str]) -> Graph:
    """Return the graph with the groups in `reasons` frozen."""
    if not reasons:
        return graph
    for g in graph.groups:
        if g.name in reasons:
            freeze(g.atom, reasons[g.name])
    groups = tuple(g for g in graph.groups if g.name not in reasons)
    frozen = (Frozen(g.name, g.size, reasons[g.name], g.members, g.atom) for g in graph.groups if g.name in reasons)
    return replace(
        graph, groups=groups, frozen=(*graph.frozen, *frozen), ragged=ragged(groups, graph.states, graph.all_ops)
    )  # fmt: skip


def observed(graph: Graph) -> Graph:
    """Return the graph with the groups frozen of which data shows nothing: no value of the first run has their units."""
    values = (axes for op in graph.ops for axes in (*op.results, *op.arguments))
    seen = {atom for axes in values for axis in axes for atom in normal(axis).atoms}
    why = "the call that data is passed through does not reach these units: no activations tell which can go"
    return with_frozen(graph, {g.name: why for g in graph.groups if g.atom not in seen})


def _storages(recording: _Recording, outputs: list[Tensor]) -> tuple[Storage, ...]:
    """Memory of the first run; what the model returns lives to its end."""
    recorder, last = recording.recorder, recording.runs[0].end
    lasting = {recorder.value(recorder.owned(t)).storage for t in outputs}
    return tuple(
        Storage(axes, dtype.itemsize, born, last if i in lasting else dies, _floats(dtype))
        for i, (axes, dtype, born, dies) in enumerate(recorder.storages[: recording.first_storages])
    )


def _floats(dtype: torch.dtype) -> int:
    """How many floating-point numbers an element is: a complex one two, an integer none."""
    return 2 if dtype.is_complex else int(dtype.is_floating_point)


def _groups(
    recorder: Recorder, ops: tuple[OpRecord, ...], in_mode: tuple[OpRecord, ...]
) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    """Return the groups, and the units that stay; `in_mode` are the ops of all runs in the mode that the model is in."""
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
    renormalized = {a for op in in_mode for s in op.renormalized for a in normal(s).atoms}
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
    return tuple(groups), (*frozen, *_singled(recorder, used))


def _singled(recorder: Recorder, used: dict[str, int]) -> Iterator[Frozen]:
    """Yield the units of parameters that the model takes one by one, such as experts in a loop over a list of modules."""
    taken = [(normal(axis), reason) for axis, reason in recorder.context.singled]
    found: dict[int, tuple[int, Reason, list[Member]]] = {}
    for state in recorder.states.values() if taken else ():
        for dim, axis in enumerate(state.axes):
            space = normal(axis)
            n = sum(t.size == 1 for t in space.terms) if state.parameter and isinstance(space, Sum) else 0
            at = next((i for i, (other, _) in enumerate(taken) if other is space), None)
            if n and at is not None:
                found.setdefault(at, (n, taken[at][1], []))[2].append(Member(state.name, dim))
    for n, reason, places in found.values():
        yield Frozen(_name(Atom(n), "", places, recorder.states, used), n, str(reason), tuple(places), Atom(n, reason))


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
