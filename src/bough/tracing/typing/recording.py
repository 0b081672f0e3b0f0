"""Record the calls of a model, one after the other, into one set of types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Signature, signature
from typing import Any

from torch import Tensor, nn

from bough.calls import FORWARD, Call
from bough.errors import TraceError
from bough.graph import RecordedRun
from bough.ops import spec
from bough.spaces import freeze
from bough.tracing.capture.execution import Execution
from bough.tracing.capture.in_a_row import InARow, carries_state, freeze_moving_positions, in_a_row
from bough.tracing.capture.inputs import call_of
from bough.tracing.capture.provenance import Attribute, AxisSize, Equation, Path, TracedInt, comparisons
from bough.tracing.capture.run import run, switch
from bough.tracing.capture.siblings import Failed, Ran, no_output, run_beside
from bough.tracing.capture.state import same_form, state_after_run
from bough.tracing.capture.tree import Returned, tensors_within
from bough.tracing.typing.layers import Watch
from bough.tracing.typing.recorder import Recorder
from bough.tracing.typing.state_types import bind_state
from bough.tracing.typing.ties import TiedPair, unify_tied


@dataclass(eq=False, slots=True)
class Recording:
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


def recorded_calls(
    model: nn.Module, calls: tuple[Call, ...], real: bool, draw: float, tied: Sequence[TiedPair] = ()
) -> Recording:  # fmt: skip
    """Record the calls one after the other, each from the model as it is, so that all of them bind the same types.

    A call that shapes alone do not carry, because its control flow reads values, is recorded on real values.
    """
    needs_values = [real] * len(calls)
    while True:
        recorder = Recorder(model)
        unify_tied(recorder, tied)
        recording = Recording(recorder, Watch(model, recorder), calls, draw)
        failed = _record_all(recording, needs_values)
        if failed is None:
            return recording
        needs_values[failed] = True


def _record_all(recording: Recording, needs_values: list[bool]) -> int | None:
    """Record all calls; return the index of a call that shapes alone do not carry."""
    for i, real in enumerate(needs_values):
        try:
            recording.results.append(record(recording, RecordedRun(i, 0, 0, real)))
        except TraceError:
            raise
        except Exception as error:  # control flow reads values, or the model can not run at all
            if real:
                raise TraceError(_not_run(recording.watch.model, recording.calls, i, error)) from error
            return i
    return None


def record(recording: Recording, planned: RecordedRun, ran: Ran = no_output, failed: Failed | None = None) -> Returned:
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

    before = state_after_run(watch.model)

    def bind() -> None:
        after = state_after_run(watch.model)
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


def record_in_a_row(recording: Recording) -> list[str]:
    """Record calls that leave state behind several times in a row, too: what a later call finds binds the types as well."""
    recorder, watch, notes = recording.recorder, recording.watch, list[str]()
    if any(isinstance(call.method, InARow) for call in recording.calls):
        return notes
    for at in [i for i in range(len(recording.calls)) if i in recording.stateful]:
        once, ops, runs, given = recording.runs[at], len(recorder.ops), len(recording.runs), recording.calls
        recording.calls = (*given, in_a_row(given[at]))
        for real in dict.fromkeys((once.real, True)):
            try:
                result, why = record(recording, RecordedRun(len(given), 0, 0, real)), ""
                break
            except Exception as error:
                why = line_of(error)
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


def freeze_outputs(recorder: Recorder, recorded: RecordedRun, result: Returned) -> list[Tensor]:
    """Freeze every axis of the tensors that a call returns, and the units that their values number; return the tensors."""
    outputs = list(result.tensors().values())
    ops = recorder.ops[recorded.start : recorded.end]
    if not outputs:  # a number or text that was chosen by a number
        for space in (s for op in ops if spec(op.name).reads_values for s in op.ranges if s is not None):
            freeze(space, "numbered by an output of the model")
    for tensor in outputs:
        typing = recorder.typing(recorder.owned(tensor))
        for axis in typing.axes:
            if axis.size > 1:
                freeze(axis, "output of the model")
        if typing.ranges is not None:
            freeze(typing.ranges, "numbered by an output of the model")
    return outputs


def line_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _not_run(model: nn.Module, calls: tuple[Call, ...], at: int, error: Exception) -> str:
    """Return the message for a call that can not be made."""
    call, what = calls[at], line_of(error)
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
