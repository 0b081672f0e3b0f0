"""The reference of `verify`: the masked original, whose statistics over cut units are taken over the kept ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from bough.tracing.execution import Execution, OnStandIns
from bough.tracing.stream import OpCall, swap, tensors_in, written
from bough.tracing.trace import run, trace


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

    def outputs(self) -> list[dict[str, Tensor]]:
        """Make the calls with the weights that the masked model has now; return what each returns, by path."""
        try:
            return self._run()
        except _OtherPath:
            if all(r.real for r in self.graph.runs):
                raise
            self._trace(real=True)
            return self._run()

    def _trace(self, *, real: bool) -> None:
        self.graph = trace(self.masked, list(self.calls), real=real)
        self.kept: dict[Atom, Any] = {}
        for group in self.graph.groups:
            member = next((m for m in group.members if m.dim in self.plan.kept.get(m.name, {})), None)
            if member is not None:
                self.kept[group.atom] = _units(self.graph, group.atom, member.name, member.dim, self.plan)

    def _run(self) -> list[dict[str, Tensor]]:
        found = []
        for call, recorded in zip(self.graph.calls, self.graph.runs, strict=False):
            execution = Execution(self.masked, True)
            handler = _KeptOnly(self.graph, recorded, self.kept, execution)
            returned = run(handler, execution, self.masked, call, lambda path, n: n, first=recorded.start)
            found.append({path: plain(t).clone() for path, t in returned.compared().items()})
        return found


class _OtherPath(PlanError):
    """The run takes another path than the traced one."""


def _units(graph: Graph, atom: Atom, name: str, dim: int, plan: Plan) -> Any:
    (units, *_) = coordinates(graph.states[name].axes[dim], atom)
    found = np.unique(units[plan.kept[name][dim]])
    return found[found >= 0]


class _KeptOnly(OnStandIns):
    """Runs for real; an op with a statistic over cut units is run on the kept ones, its result spread out with zeros.

    The statistics may lead the run along another path than the traced one (a router chooses among kept experts only);
    what is not next in the recorded run is then told by its line and module.
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
