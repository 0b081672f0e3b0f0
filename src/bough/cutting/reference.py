"""The reference of `verify`: the masked original, whose statistics over cut units are taken over the kept ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bough.calls import Call
from bough.cutting.slicing import plain
from bough.errors import PlanError
from bough.graph import Graph, OpRecord, RecordedRun
from bough.planning.plan import Plan
from bough.spaces import Atom, Space, coordinates, indices, normal
from bough.tracing.capture.execution import Execution, OnStandIns
from bough.tracing.capture.run import run
from bough.tracing.capture.siblings import Ran, run_beside
from bough.tracing.capture.stream import OpCall, swap, tensors_in, written
from bough.tracing.capture.tree import Returned
from bough.tracing.trace import trace


class Reference:
    """A masked model, run with each statistic over cut units taken over the kept ones.

    Args:
        masked: the original with zeros for all that the plan removes; in eval mode.
        plan: the plan that it was masked by.
        calls: the calls to make; a call that leaves state behind is made several times in a row, too (see `Graph.calls`).
    """

    def __init__(self, masked: nn.Module, plan: Plan, calls: Sequence[Call]) -> None:
        self.masked, self.plan, self.calls = masked, plan, calls
        self._trace(real=False)

    @property
    def beside(self) -> tuple[RecordedRun, ...]:
        """The runs in evaluation mode in which modules that no call reaches run on the inputs of their siblings."""
        return tuple(r for r in self.graph.runs if r.beside and not r.other_mode)

    def outputs(self) -> list[dict[str, Tensor]]:
        """Make the calls with the weights that the masked model has now; return what each returns, by path.

        What modules returned that ran beside their siblings comes after that, a dict for each.
        """
        try:
            return self._run()
        except _OtherPath:
            if all(r.real for r in self.graph.runs):
                raise
            self._trace(real=True)
            return self._run()

    def _trace(self, *, real: bool) -> None:
        self.graph = trace(self.masked, list(self.calls), tie=dict(self.plan.tie), real=real)
        self.kept: dict[Atom, Any] = {}
        for group in self.graph.groups:
            member = next((m for m in group.members if m.dim in self.plan.kept.get(m.name, {})), None)
            if member is not None:
                self.kept[group.atom] = _units(self.graph, group.atom, member.name, member.dim, self.plan)

    def _run(self) -> list[dict[str, Tensor]]:
        found = [compared(self._made(r)) for r in self.graph.runs[: len(self.graph.calls)]]
        for recorded in self.beside:
            outputs: dict[str, Returned] = {}
            self._made(recorded, partial(run_beside, self.masked, recorded.beside, collected(outputs)))
            for pair in recorded.beside:
                tensors = compared(outputs[pair.name]) if pair.name in outputs else {}
                found.append({path: self._kept(t, pair.outputs.get(path, ())) for path, t in tensors.items()})
        return found

    def _kept(self, tensor: Tensor, axes: tuple[Space, ...]) -> Tensor:
        """Return what the cut model gives of a tensor inside the model: the kept units along each axis."""
        for dim, axis in enumerate(axes):
            tensor = tensor.index_select(dim, torch.from_numpy(indices(axis, self.kept)).to(tensor.device))
        return tensor

    def _made(self, recorded: RecordedRun, prepare: Callable[[], None] | None = None) -> Returned:
        """Repeat a recorded run with the weights that the masked model has now."""
        execution = Execution(self.masked, True)
        handler = _KeptOnly(self.graph, recorded, self.kept, execution)
        call = self.graph.calls[recorded.call]
        return run(handler, execution, self.masked, call, lambda path, n: n, prepare, recorded.start)


def compared(returned: Returned) -> dict[str, Tensor]:
    """Return copies of what is compared of a returned value, by path."""
    return {path: plain(t).clone() for path, t in returned.compared().items()}


def collected(outputs: dict[str, Returned]) -> Ran:
    """Return a function for `run_beside` that keeps what each module returned in `outputs`, by its name."""

    def ran(name: str, sibling: str, given: Any, result: Any, output: Any) -> None:
        outputs[name] = Returned.of(output)

    return ran


class _OtherPath(PlanError):
    """The run takes another path than the traced one."""


def _units(graph: Graph, atom: Atom, name: str, dim: int, plan: Plan) -> Any:
    (units, *_) = coordinates(graph.states[name].axes[dim], atom)
    found = np.unique(units[plan.kept[name][dim]])
    return found[found >= 0]


class _KeptOnly(OnStandIns):
    """Runs for real; an op with a statistic over cut units is run on the kept ones, its result spread out with zeros.

    The statistics may lead the run along another path than the traced one (a router chooses among kept experts only);
    what is not next in the recorded run is then reported by its line and module.
    """

    def __init__(self, graph: Graph, recorded: RecordedRun, kept: Mapping[Atom, Any], execution: Execution) -> None:
        super().__init__(execution)
        self.kept, self._end = kept, recorded.end
        self._ops = graph.all_ops
        self._sites = {(op.name, op.where, op.module): op for op in self._ops[recorded.start : recorded.end]}
        self._modules = {id(m): name for name, m in graph.model.named_modules()}
        self._aligned = True

    def _record(self, call: OpCall) -> OpRecord:
        ops = self._ops
        self._aligned = self._aligned and call.index < self._end and ops[call.index].name == call.name
        if self._aligned and ops[call.index].where == call.where:
            return ops[call.index]
        self._aligned = False
        found = self._sites.get((call.name, call.where, self._modules.get(id(call.module), "")))
        if found is None:
            raise _OtherPath(
                f"the masked model takes a path that was not traced ({call.name}, {call.where}): its control flow depends on "
                "data; trace and verify on inputs that take the same path"
            )
        return found

    def op(self, call: OpCall) -> Any:
        record = self._record(call)
        if not any(a in self.kept for s in (*record.renormalized, *record.undefined) for a in normal(s).atoms):
            return self.execution.run(call)
        axes = iter(record.arguments)
        args = swap(call.args, lambda t: self._slice(t, next(axes)))
        kwargs = {k: swap(v, lambda t: self._slice(t, next(axes))) for k, v in call.kwargs.items()}
        args = _adapted(call.name, args, record, self.kept)
        if record.scale_of is not None:  # attention scales by the width of the original
            kwargs["scale"] = record.scale_of.size**-0.5
        result = call.func(*args, **kwargs)
        results = [self._spread(t, a) for t, a in zip(tensors_in(result), record.results, strict=True)]
        results = [self._numbered(t, r) for t, r in zip(results, record.ranges, strict=True)]
        results = [
            target if target is r else target.copy_(r) for r, target in zip(results, written(call, results), strict=True)
        ]
        return (
            results[0]
            if isinstance(result, Tensor)
            else type(result)(results)
            if type(result) in (list, tuple)
            else tuple(results)
        )

    def _slice(self, tensor: Tensor, axes: tuple[Space, ...]) -> Tensor:
        for dim, axis in enumerate(axes):
            index = indices(axis, self.kept)
            if len(index) < axis.size:
                tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
        return tensor

    def _numbered(self, tensor: Tensor, space: Space | None) -> Tensor:
        """Numbers of kept units as numbers of all units."""
        if space is None or len(units := indices(space, self.kept)) == space.size:
            return tensor
        return torch.from_numpy(units).to(tensor.device)[tensor]

    def _spread(self, tensor: Tensor, axes: tuple[Space, ...]) -> Tensor:
        for dim, axis in enumerate(axes):
            index = indices(axis, self.kept)
            if len(index) < axis.size:
                shape = list(tensor.shape)
                shape[dim] = axis.size
                full = tensor.new_zeros(shape)
                tensor = full.index_copy_(dim, torch.from_numpy(index).to(tensor.device), tensor)
        return tensor


def _adapted(name: str, args: tuple[Any, ...], record: OpRecord, kept: Mapping[Atom, Any]) -> tuple[Any, ...]:
    """The integer arguments of a normalization on fewer units."""
    if name in ("layer_norm", "rms_norm"):
        n = len(args[1])
        return (args[0], list(args[0].shape[-n:]), *args[2:])
    if name == "group_norm":
        channels, positions = record.arguments[0][1], record.arguments[0][2:]
        within = [s for s in record.renormalized if all(s is not p for p in positions)]
        each = len(indices(within[0], kept)) if within else channels.size // int(args[1])
        return (args[0], args[0].shape[1] // each, *args[2:])
    return args
