"""The replay check: does the model's own Python agree with a plan?

The model is run again on shapes alone, its tensors standing at their cut sizes and its integers at their new values,
and each op is held against the recorded run. Where an op fails or has another shape than its types say, the conflict
is noted and the run goes on with the shape it should have had, so that one replay finds all conflicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bough.graph import Graph, OpRecord, atoms_of, sizes
from bough.spaces import Atom, Space, count
from bough.tracing.execution import Execution
from bough.tracing.held import rewrite
from bough.tracing.layers import leave_out
from bough.tracing.provenance import Path
from bough.tracing.stream import Call, tensors_in
from bough.tracing.trace import run, switch


@dataclass(frozen=True, eq=False, slots=True)
class Conflict:
    """What does not agree, where, and the atoms to blame (none where that is not known)."""

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

    execution: Execution

    def __init__(self, graph: Graph, kept: Mapping[Atom, int]) -> None:
        self.graph, self.kept = graph, kept
        self.ops = (*graph.ops, *graph.second)
        self.conflicts: list[Conflict] = []
        self.rescales: list[Rescale] = []
        self.reached = 0  # ops that were repeated

    def begin(self, execution: Execution, first: int) -> None:
        """A run begins, with the op of number `first`."""
        self.execution, self.reached = execution, first

    def owned(self, tensor: Tensor) -> Tensor:
        return self.execution.stand_ins.get(id(tensor), tensor)

    def shape(self, tensor: Tensor) -> torch.Size:
        return tensor.shape

    def device(self, tensor: Tensor) -> torch.device:
        return self.execution.device(tensor)

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        pass

    def op(self, call: Call) -> Any:
        record = self._next(call)
        expected = [sizes(axes, self.kept) for axes in record.results]
        if record.outcome is not None and not call.name.endswith("_"):
            return self._as_recorded(call, record, expected)
        for narrow, wide in record.narrower:
            least, left = (int(count(s, self.kept)) for s in (narrow, wide))
            if left <= least:
                self._conflict(record, f"it must stay wider than {least}, and would be {left}", (wide,))
                return self._expected(call, expected)
        if self.graph.real and call.name == "select":  # of as many units as there were
            x, dim, at = call.args
            call = dataclasses.replace(call, args=(x, dim, min(at, x.shape[dim] - 1)))
        try:
            result = self.execution.run(call)
        except Exception as error:
            if self.graph.real and (isinstance(error, NotImplementedError) or _depends_on_data(call.func)):
                return self._expected(call, expected)  # torch can not run it on shapes
            what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._conflict(record, what, (*record.results, *record.arguments))
            return self._expected(call, expected)
        results = tensors_in(result)
        for tensor, shape, axes in zip(results, expected, record.results, strict=False):
            if tuple(tensor.shape) != shape:
                what = f"stale integer: the shape is {list(tensor.shape)} and should be {list(shape)}"
                self._conflict(record, what, _stale(axes, tuple(tensor.shape), shape))
                return self._expected(call, expected)
        self._scalars(record, call)
        return result

    def _next(self, call: Call) -> OpRecord:
        """The recorded op that the call repeats. Rearrangements may fall away where a width has become 1."""
        ops = self.ops
        at = self.reached
        if at < len(ops) and ops[at].name == "lift_fresh" and call.name == "scalar_tensor":  # a number on another device
            self.reached = at + 1
            return ops[at]
        while at < len(ops) and ops[at].name != call.name and ops[at].name in REARRANGING:
            at += 1
        if at > self.reached and (at == len(ops) or ops[at].where != f"{call.file}:{call.line}"):
            at = self.reached
        if at >= len(ops) or ops[at].name != call.name:
            was = ops[at].name if at < len(ops) else "the end"
            raise Diverged(f"{call.name} where {was} was, {call.where}")
        self.reached = at + 1
        return ops[at]

    def _as_recorded(self, call: Call, record: OpRecord, shapes: list[tuple[int, ...]]) -> Any:
        """What the run on real values gave, at the cut sizes: so that the replay takes the same path."""
        last = [None if r is None else int(count(r, self.kept)) - 1 for r in record.ranges] or [None]
        if not isinstance(record.outcome, list):
            within = isinstance(record.outcome, int) and last[0] is not None
            return min(record.outcome, last[0]) if within else record.outcome
        made = []
        floats = self._expected(call, shapes)
        floats = floats if isinstance(floats, (list, tuple)) else [floats]
        for known, top, shape, other in zip(record.outcome, last, shapes, floats, strict=False):
            if known is None:
                made.append(other)
            else:
                cut = known[tuple(slice(n) for n in shape)]
                made.append(cut.clamp(max=top) if top is not None else cut.clone())
        return _in_form(call, made)

    def _conflict(self, record: OpRecord, what: str, axes: tuple[Any, ...]) -> None:
        spaces: list[Space] = []
        for a in axes:
            spaces.extend(a if isinstance(a, tuple) else (a,))
        cut = self._cut(tuple(spaces)) or self._cut(tuple(s for axes in record.arguments for s in axes))
        self.conflicts.append(Conflict(what, record, cut))
        if not cut:
            raise Diverged(what)

    def _cut(self, spaces: tuple[Space, ...]) -> frozenset[Atom]:
        return frozenset(a for a in atoms_of(spaces) if self.kept.get(a, a.size) < a.size)

    def _expected(self, call: Call, shapes: list[tuple[int, ...]]) -> Any:
        """Results of the shapes they should have; the original run tells how many, in what form."""
        tensors = [t for a in call.args for t in tensors_in(a)]
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), tensors[0].dtype if tensors else torch.float32)
        return _in_form(call, [torch.empty(s, dtype=dtype, device="meta") for s in shapes])

    def _scalars(self, record: OpRecord, call: Call) -> None:
        if record.scale_of is not None:
            before, after = record.scale_of.size, sizes((record.scale_of,), self.kept)[0]
            if before != after:
                self.rescales.append(Rescale(record, (after / before) ** 0.5, 0))
        for key, old in record.scalars:
            given = call.args[key] if isinstance(key, int) else call.kwargs[key]
            if isinstance(given, Tensor) and given.device.type == "meta":
                continue
            new = float(given)
            if old == new:
                continue
            factor = _restoring(call.name.rstrip("_"), key, old, new)
            if factor is None:
                self.conflicts.append(Conflict(f"the number {old:g} becomes {new:g}", record, self._blame(record)))
            else:
                self.rescales.append(Rescale(record, factor, 1 if key == 0 else 0))

    def _blame(self, record: OpRecord) -> frozenset[Atom]:
        return self._cut(tuple(s for axes in (*record.results, *record.arguments) for s in axes))


def _stale(axes: tuple[Space, ...], found: tuple[int, ...], expected: tuple[int, ...]) -> tuple[Space, ...]:
    """The axes that are as long as they were and should not be; other wrong ones may only have followed (a -1 in a view)."""
    wrong = [(a, n) for a, n, m in zip(axes, found, expected, strict=False) if n != m]
    return tuple(a for a, n in wrong if n == a.size) or tuple(a for a, _ in wrong) or axes


REARRANGING = frozenset(
    ("unsqueeze", "squeeze", "expand", "reshape", "view", "_unsafe_view", "clone", "contiguous", "repeat", "as_strided_")
)


def _restoring(name: str, key: int | str, old: float, new: float) -> float | None:
    """The factor on the other argument that undoes a changed number, where there is one."""
    if not old or not new:
        return None
    if name == "mul" or (name == "scaled_dot_product_attention" and key in (6, "scale")):
        return old / new
    return new / old if name in ("div", "true_divide") and key == 1 else None


def _depends_on_data(func: Any) -> bool:
    tags = getattr(func, "tags", ())
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _in_form(call: Call, made: list[Tensor]) -> Any:
    """Results as the op returns them: one tensor, a list, or a tuple."""
    returns = getattr(getattr(call.func, "_schema", None), "returns", None)
    if returns is not None and len(returns) == 1 and returns[0].type.kind() == "ListType":
        return made
    return made[0] if len(made) == 1 else tuple(made)


def replay(graph: Graph, kept: Mapping[Atom, int], attributes: Mapping[Path, int]) -> Replay:
    """Runs the model at the cut sizes and gives what does not agree; the model stays as it was."""
    shapes = {s.name: sizes(s.axes, kept) for s in graph.states.values()}
    handler = Replay(graph, kept)

    def prepare() -> None:
        rewrite(graph.model, *graph.layer_notes)
        leave_out(graph.model, [(x.name, x.form, bool(x.container)) for x in graph.left_out])

    def prepare_second() -> None:
        prepare()
        switch(graph.model)

    runs = [(0, prepare), (len(graph.ops), prepare_second)] if graph.second else [(0, prepare)]
    try:
        for first, prepared in runs:
            execution = Execution(graph.model, False, shapes)
            handler.begin(execution, first)
            run(
                handler, execution, graph.model, graph.args, graph.kwargs, lambda path, n: attributes.get(path, n), prepared
            )  # fmt: skip
    except Exception as error:
        if not handler.conflicts:
            done = handler.ops[handler.reached - 1] if handler.reached else None
            what = f"the control flow changes: {error}" if isinstance(error, Diverged) else f"{type(error).__name__}: {error}"
            handler.conflicts.append(Conflict(what, done, frozenset()))
    return handler
