"""The replay check: does the model's own Python agree with a plan?

The model is run again on shapes alone, its tensors standing at their cut sizes and its integers at their new values,
and each op is held against the recorded run. Where an op fails or has another shape than its types say, the conflict
is noted and the run goes on with the shape it should have had, so that one replay finds all conflicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bough.graph import Graph, OpRecord, atoms_of, sizes
from bough.spaces import Atom, Space
from bough.tracing.execution import Execution
from bough.tracing.provenance import Path
from bough.tracing.stream import Call, tensors_in
from bough.tracing.trace import run


@dataclass(frozen=True, eq=False, slots=True)
class Conflict:
    """What does not agree, where, and the atoms to blame."""

    what: str
    op: OpRecord | None
    atoms: frozenset[Atom]

    def __str__(self) -> str:
        place = f" ({self.op.name} in {self.op.module or 'the model'}, {self.op.where})" if self.op else ""
        return self.what + place


@dataclass(frozen=True, eq=False, slots=True)
class Rescale:
    """A scalar that the model derives from a cut width: the op, and the factor that restores its result."""

    op: OpRecord
    factor: float
    argument: int  # the tensor argument to multiply


class Diverged(Exception):
    """The run took another path."""


class Replay:
    """The handler of the check."""

    def __init__(self, graph: Graph, kept: Mapping[Atom, int], execution: Execution) -> None:
        self.graph, self.kept, self.execution = graph, kept, execution
        self.conflicts: list[Conflict] = []
        self.rescales: list[Rescale] = []

    def owned(self, tensor: Tensor) -> Tensor:
        return self.execution.stand_ins.get(id(tensor), tensor)

    def shape(self, tensor: Tensor) -> torch.Size:
        return tensor.shape

    def device(self, tensor: Tensor) -> torch.device:
        return self.execution.device(tensor)

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        pass

    def op(self, call: Call) -> Any:
        record = self.graph.ops[call.index] if call.index < len(self.graph.ops) else None
        if record is None or record.name != call.name:
            raise Diverged(f"{call.name} where {record.name if record else 'the end'} was, {call.where}")
        expected = [sizes(axes, self.kept) for axes in record.results]
        try:
            result = self.execution.run(call)
        except Exception as error:
            if self.graph.real:
                raise
            self._conflict(
                record, f"{type(error).__name__}: {str(error).splitlines()[0]}", (*record.results, *record.arguments)
            )
            return self._expected(call, expected)
        results = tensors_in(result)
        for tensor, shape, axes in zip(results, expected, record.results, strict=False):
            if tuple(tensor.shape) != shape:
                if self.graph.real and len(tensor.shape) == len(shape):
                    continue
                wrong = tuple(a for a, n, m in zip(axes, tensor.shape, shape, strict=False) if n != m) or axes
                self._conflict(record, f"stale integer: the shape is {list(tensor.shape)} and should be {list(shape)}", wrong)
                return self._expected(call, expected)
        self._scalars(record, call)
        return result

    def _conflict(self, record: OpRecord, what: str, axes: tuple[Any, ...]) -> None:
        spaces: list[Space] = []
        for a in axes:
            spaces.extend(a if isinstance(a, tuple) else (a,))
        cut = self._cut(tuple(spaces)) or self._cut(tuple(s for axes in record.arguments for s in axes))
        self.conflicts.append(Conflict(what, record, cut))
        if not cut:
            raise Diverged

    def _cut(self, spaces: tuple[Space, ...]) -> frozenset[Atom]:
        return frozenset(a for a in atoms_of(spaces) if self.kept.get(a, a.size) < a.size)

    def _expected(self, call: Call, shapes: list[tuple[int, ...]]) -> Any:
        """Results of the shapes they should have; the original run tells how many, in what form."""
        tensors = [t for a in call.args for t in tensors_in(a)]
        dtype = tensors[0].dtype if tensors else torch.float32
        made = [torch.empty(s, dtype=dtype, device="meta") for s in shapes]
        returns = getattr(getattr(call.func, "_schema", None), "returns", None)
        if returns is not None and len(returns) == 1 and "[]" in str(returns[0].type):
            return made
        return made[0] if len(made) == 1 else tuple(made)

    def _scalars(self, record: OpRecord, call: Call) -> None:
        if record.scale_of is not None:
            before, after = record.scale_of.size, sizes((record.scale_of,), self.kept)[0]
            if before != after:
                self.rescales.append(Rescale(record, (after / before) ** 0.5, 0))
        now = tuple(a for a in call.args if type(a) is float)
        for old, new in zip(record.scalars, now, strict=False):
            if old == new or not new or not old:
                continue
            if call.name in ("mul", "mul_"):
                self.rescales.append(Rescale(record, old / new, 0))
            elif call.name in ("div", "div_"):
                self.rescales.append(Rescale(record, new / old, 0))
            else:
                self._conflict(record, f"the number {old:g} becomes {new:g}", (*record.results, *record.arguments))


def replay(graph: Graph, kept: Mapping[Atom, int], attributes: Mapping[Path, int]) -> Replay:
    """Runs the model at the cut sizes and gives what does not agree; the model stays as it was."""
    shapes = {s.name: sizes(s.axes, kept) for s in graph.states.values()}
    execution = Execution(graph.model, graph.real, shapes)
    handler = Replay(graph, kept, execution)
    try:
        run(handler, execution, graph.model, graph.args, graph.kwargs, lambda path, n: attributes.get(path, n))
    except Exception as error:
        if not handler.conflicts:
            done = graph.ops[-1] if graph.ops else None
            what = f"the control flow changes: {error}" if isinstance(error, Diverged) else f"{type(error).__name__}: {error}"
            cut = frozenset(a for a, n in kept.items() if n < a.size)
            handler.conflicts.append(Conflict(what, done, cut))
    return handler
