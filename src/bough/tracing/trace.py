"""`trace`: run a model once and type every axis of every tensor in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.calls import FORWARD, Call, as_calls
from bough.errors import TraceError
from bough.graph import Graph, RecordedRun, Storage
from bough.tracing.capture.copies import bind_copies
from bough.tracing.capture.randomness import HIGH, LOW
from bough.tracing.capture.tree import tensors_within
from bough.tracing.capture.wrapped import traceable
from bough.tracing.fingerprint import fingerprint
from bough.tracing.selection import Selection, left_alone, selectors
from bough.tracing.typing.further_runs import record_beside_tied, record_other_mode, type_unreached, unread_states
from bough.tracing.typing.groups import groups_of, with_frozen
from bough.tracing.typing.ragged import ragged
from bough.tracing.typing.recording import Recording, freeze_outputs, record_in_a_row, recorded_calls
from bough.tracing.typing.ties import Ties, tie_names, tied_pairs


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
    recording = recorded_calls(model, calls, real, HIGH, pairs)
    if recording.drew and unread_states(recording.recorder):  # perhaps of layers that are run where the draw is low
        other = recorded_calls(model, calls, real, LOW, pairs)
        if len(unread_states(other.recorder)) < len(unread_states(recording.recorder)):
            recording = other
    notes = record_in_a_row(recording)
    recorder, runs = recording.recorder, recording.runs
    outputs = [freeze_outputs(recorder, run, result) for run, result in zip(runs, recording.results, strict=True)]
    returned = [isinstance(leaf, Tensor) for result in recording.results for _, leaf in result.leaves]
    if not any(returned) and all(call.method == FORWARD for call in calls):
        raise TraceError(
            f"{type(model).__name__} returns no tensor: its output is of type {recording.results[0].kind}; return tensors, or "
            "dicts, tuples, dataclasses or plain objects that hold them"
        )
    notes += lone + _real_notes(recording.calls, runs)
    numbers = {recorder.value(recorder.owned(t)).number for tensors in outputs for t in tensors}
    ops, storages = tuple(recorder.ops[: runs[0].end]), _storages(recording, outputs[0])
    notes += record_other_mode(recording)
    notes += [str(u) for u in record_beside_tied(recording, pairs)]
    unreached = type_unreached(recording, pairs)
    in_mode = tuple(op for r in runs if not r.other_mode for op in recorder.ops[r.start : r.end])
    recorder.equations += bind_copies(model, recorder.equations)
    groups, frozen = groups_of(recorder, ops, in_mode)
    graph = Graph(
        model, recording.calls, tuple(runs), ops, storages, recorder.states, tuple(recorder.equations), groups, frozen,
        tuple(recorder.unknown), fingerprint(model), notes, recording.watch.layers(numbers),
        ragged=ragged(groups, recorder.states, recorder.ops), further_ops=tuple(recorder.ops[len(ops) :]),
        modes={n: m.training for n, m in model.named_modules()}, draw=recording.draw,
        written=frozenset(recording.written), tie=tuple(tie_names(model, tie or {}).items()),
        unreached=tuple(unreached),
    )  # fmt: skip
    return with_frozen(graph, left_alone(graph, ignored, selected))


def _check_inputs(call: Call) -> None:
    for tensor in tensors_within((call.args, call.kwargs)):
        if tensor.is_nested:
            raise TraceError(
                "an example input is a nested tensor, whose rows have sizes of their own, which bough can not follow: give a "
                "padded tensor, with a mask where the model takes one"
            )


def _real_notes(calls: tuple[Call, ...], runs: list[RecordedRun]) -> list[str]:
    """Say which calls were recorded on real values."""
    real = [str(calls[r.call]) for r in runs if r.real]
    which = f" of {', '.join(real)}" if len(calls) > 1 else ""
    return [f"traced with real values: the model's control flow{which} depends on data"] if real else []


def _storages(recording: Recording, outputs: list[Tensor]) -> tuple[Storage, ...]:
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
