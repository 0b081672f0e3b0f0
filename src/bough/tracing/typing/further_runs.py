"""Runs that reach what the calls themselves do not: the other mode, and modules beside their siblings or partners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bough.graph import Beside, RecordedRun, State, Unreached
from bough.spaces import Space
from bough.tracing.capture.tree import Returned
from bough.tracing.typing.attachments import bind_unreached
from bough.tracing.typing.recorder import Recorder
from bough.tracing.typing.recording import Recording, freeze_outputs, line_of, record
from bough.tracing.typing.ties import TiedPair, following, modules_beside
from bough.tracing.typing.unreached import alike, siblings, tie_beside, tie_siblings, tie_tensors


def unread_states(recorder: Recorder) -> list[str]:
    """Return the parameters, and the saved buffers of several floats, that no recorded op reads, under any name."""
    read = {name for op in recorder.ops for name in op.states if name}
    shared = {id(recorder.states[name].axes) for name in read}  # tensors that share memory share their axes
    return [s.name for s in recorder.states.values() if _is_learned(s) and id(s.axes) not in shared]


def _is_learned(state: State) -> bool:
    """Return whether a tensor is a parameter, or a buffer that holds what a parameter may, such as a codebook."""
    return state.parameter or (state.saved and state.floating and any(a.size > 1 for a in state.axes))


def record_other_mode(recording: Recording) -> list[str]:
    """Where some parameters are not read, as those of heads for training only: record the calls in the other mode, too."""
    recorder, watch, notes = recording.recorder, recording.watch, list[str]()
    for recorded in recording.runs[: len(recording.calls)]:
        unread = unread_states(recorder)
        if not unread:
            return []
        for doubled in (False, True):  # batch norms refuse a batch of one where each channel has one value
            ops, runs = len(recorder.ops), len(recording.runs)
            try:
                result = record(recording, replace(recorded, other_mode=True, doubled=doubled))
                freeze_outputs(recorder, recording.runs[-1], result)
                error = None
            except Exception as problem:
                error = problem
            if error is not None or unread == unread_states(recorder):  # the other mode reads no more
                del recorder.ops[ops:]
                del recording.runs[runs:]
                watch.forget()
            if error is None:
                break
            mode = "evaluation" if watch.model.training else "training"
            notes = [notes[0] if doubled else f"the model does not run in {mode} mode: {line_of(error)}"]
    return notes if unread_states(recorder) else []


def type_unreached(recording: Recording, tied: Sequence[TiedPair]) -> list[Unreached]:
    """Type what no call reached, by its siblings first; return how each part is treated."""
    model, recorder, runs = recording.watch.model, recording.recorder, recording.watch.runs
    found = _beside(recording, siblings(model, recorder, frozenset(name for run in runs for name in run)))
    found += following(tied, unread_states(recorder))
    found += tie_tensors(model, recorder, _without(unread_states(recorder), found))
    found += bind_unreached(model, recorder, runs, _without(unread_states(recorder), found))
    return found


def record_beside_tied(recording: Recording, tied: Sequence[TiedPair]) -> list[Unreached]:
    """Run modules that no call reached on the inputs of those that the user ties them to; return those that run there."""
    read = {name for op in recording.recorder.ops for name in op.states if name}
    executed = frozenset(name for run in recording.watch.runs for name in run)
    return _beside(recording, modules_beside(recording.watch.model, tied, read, executed), by_hand=True)


def _without(names: Sequence[str], treated: Sequence[Unreached]) -> list[str]:
    known = {u.name for u in treated}
    return [name for name in names if name not in known]


def _beside(recording: Recording, pairs: Mapping[str, tuple[str, ...]], by_hand: bool = False) -> list[Unreached]:
    """Run modules that no call reached on the inputs of others that a call reached; return those that run there.

    A module that does not run on these inputs is left out, and the run recorded once more.

    Args:
        recording: the runs so far.
        pairs: {module that no call reached: its siblings that were called, the first of which gives the inputs}.
        by_hand: the pairs are the user's ties: they share the types of their outputs, but need not follow one another.
    """
    found: list[Unreached] = []
    calls = zip(recording.watch.runs, recording.runs, strict=True)
    executed = [frozenset() if recorded.beside else frozenset(run) for run, recorded in calls]
    waiting = dict(pairs)
    for at, recorded in enumerate(list(recording.runs)):
        here = tuple((name, others) for name, others in waiting.items() if others[0] in executed[at])
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


def _recorded_beside(recording: Recording, recorded: RecordedRun, by_hand: bool) -> set[str]:
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

    result = record(recording, recorded, ran, lambda name, error: failed.add(name))
    if failed:
        del recorder.ops[ops:]
        recording.runs.pop()
        recording.watch.forget()
    else:
        freeze_outputs(recorder, recording.runs[-1], result)
        beside = tuple(replace(pair, outputs=outputs.get(pair.name, {})) for pair in recorded.beside)
        recording.runs[-1] = replace(recording.runs[-1], beside=beside)
    return failed
