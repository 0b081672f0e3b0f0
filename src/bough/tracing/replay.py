"""The replay check: does the model's own Python agree with a plan?

The model is run again on shapes alone, its tensors standing at their cut sizes and its integers at their new values,
and each op is compared with the recorded run. Where an op fails or has another shape than its types say, the conflict
is noted and the run goes on with the shape it should have had, so that one replay finds all conflicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bough.graph import Graph, OpRecord, RecordedRun, atoms_of, sizes
from bough.ops import spec
from bough.spaces import Atom, Space, count
from bough.tracing.capture.attribute_numbers import rewrite
from bough.tracing.capture.execution import Execution, OnStandIns, number_in
from bough.tracing.capture.inputs import call_of
from bough.tracing.capture.provenance import Path, key_of
from bough.tracing.capture.run import run, switch
from bough.tracing.capture.siblings import run_beside
from bough.tracing.capture.stream import OpCall, tensors_in
from bough.tracing.typing.layers import leave_out


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


class Replay(OnStandIns):
    """The handler of the check; `begin` comes before each run."""

    def __init__(self, graph: Graph, kept: Mapping[Atom, int]) -> None:
        self.graph, self.kept = graph, kept
        self.ops = graph.all_ops
        self.start = 0  # number of the run's first op
        self.real = False  # whether the run was recorded on real values
        self.conflicts: list[Conflict] = []
        self.rescales: list[Rescale] = []
        self.reached = 0  # ops that were repeated
        self._sizes: dict[int, int] = {}  # by the ids of spaces, which the graph keeps alive

    def begin(self, recorded: RecordedRun, execution: Execution) -> None:
        """Start to repeat a recorded run."""
        super().__init__(execution)
        self.start = self.reached = recorded.start
        self.real = recorded.real

    def op(self, call: OpCall) -> Any:
        if self.real and call.name == "_to_copy" and not self._is_next(call.name):
            return self.execution.run(call)  # to the device where, in a run on real values, the tensor already is
        record = self._next(call)
        expected = [tuple([self._size(axis) for axis in axes]) for axes in record.results]
        for space in record.identified:
            if self._cut((space,)):
                self._conflict(record, "the code refers to one of its units by a literal index", (space,))
        if sum(not self._counts(record, call, position, space) for position, space in record.counts):
            return self._expected(call, expected)
        if record.outcome is not None and not call.name.endswith("_"):
            return self._as_recorded(call, record, expected)
        for narrow, wide in record.narrower:
            least, left = (int(count(s, self.kept)) for s in (narrow, wide))
            if left <= least:
                self._conflict(record, f"it must stay wider than {least}, and would be {left}", (wide,))
                return self._expected(call, expected)
        if self.real and call.name == "select":  # of as many units as there were
            x, dim, at = call.args
            call = dataclasses.replace(call, args=(x, dim, min(at, x.shape[dim] - 1)))
        try:
            result = self.execution.run(call)
        except Exception as error:
            if self.real and (isinstance(error, NotImplementedError) or _depends_on_data(call.func)):
                return self._expected(call, expected)  # torch can not run it on shapes
            what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._conflict(record, what, (*record.results, *record.arguments))
            return self._expected(call, expected)
        results = tensors_in(result)
        for tensor, shape, axes in zip(results, expected, record.results, strict=False):
            if tuple(tensor.shape) != shape:
                wrong = tuple(a for a, n, m in zip(axes, tensor.shape, shape, strict=False) if n != m) or axes
                what = f"stale integer: the shape is {list(tensor.shape)} and should be {list(shape)}"
                self._conflict(record, what, wrong, self._stale(axes, tuple(tensor.shape)))
                return self._expected(call, expected)
        self._scalars(record, call)
        return result

    def _size(self, axis: Space) -> int:
        """The cut size of an axis; many values have the same one."""
        size = self._sizes.get(id(axis))
        if size is None:
            size = self._sizes[id(axis)] = int(count(axis, self.kept))
        return size

    def _is_next(self, name: str) -> bool:
        return self.reached < len(self.ops) and self.ops[self.reached].name == name

    def _next(self, call: OpCall) -> OpRecord:
        """The recorded op that the call repeats. Rearrangements may fall away where a width has become 1."""
        ops = self.ops
        at = self.reached
        if at < len(ops) and ops[at].name == "lift_fresh" and call.name == "scalar_tensor":  # a number on another device
            self.reached = at + 1
            return ops[at]
        while at < len(ops) and ops[at].name != call.name and spec(ops[at].name).rearranges:
            at += 1
        if at > self.reached and (at == len(ops) or ops[at].where != f"{call.file}:{call.line}"):
            at = self.reached
        if at >= len(ops) or ops[at].name != call.name:
            was = ops[at].name if at < len(ops) else "the end"
            raise Diverged(f"{call.name} where {was} was, {call.where}")
        self.reached = at + 1
        return ops[at]

    def _as_recorded(self, call: OpCall, record: OpRecord, shapes: list[tuple[int, ...]]) -> Any:
        """What the run on real values gave, at the cut sizes: so that the replay takes the same path."""
        last = [None if r is None else int(count(r, self.kept)) - 1 for r in record.ranges] or [None]
        if not record.values:  # what Python got
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

    def _counts(self, record: OpRecord, call: OpCall, position: int, counted: Space) -> bool:
        """Whether an integer that no shape depends on, such as a number of groups or the start of a slice, is right."""
        given = call.args[position] if len(call.args) > position else call.kwargs.get("start", call.kwargs.get("index"))
        value, should = given or 0, count(counted, self.kept)
        if value < 0:  # from the end
            value += call.args[0].shape[call.args[position - 1]]
        if value != should:
            self._conflict(record, f"stale integer: {value}, which should be {should}", (counted,))
        return bool(value == should)

    def _stale(self, axes: tuple[Space, ...], shape: tuple[int, ...]) -> frozenset[Atom]:
        """A cut atom for each axis of a wrong size that explains it: the size is as if that atom were whole.

        Of several the smallest, as numbers written into code are; where that is wrong, the next replay shows it.
        """
        guilty: set[Atom] = set()
        for axis, n in zip(axes, shape, strict=False):
            if n != count(axis, self.kept):
                fitting = [a for a in self._cut((axis,)) if n == count(axis, {**self.kept, a: a.size})]
                guilty.update(sorted(fitting, key=lambda a: a.size)[:1])
        return frozenset(guilty)

    def _conflict(self, record: OpRecord, what: str, axes: tuple[Any, ...], guilty: frozenset[Atom] = frozenset()) -> None:
        spaces: list[Space] = []
        for a in axes:
            spaces.extend(a if isinstance(a, tuple) else (a,))
        cut = guilty or self._cut(tuple(spaces)) or self._cut(tuple(s for axes in record.arguments for s in axes))
        self.conflicts.append(Conflict(what, record, cut))
        if not cut:
            raise Diverged(what)

    def _cut(self, spaces: tuple[Space, ...]) -> frozenset[Atom]:
        return frozenset(a for a in atoms_of(spaces) if self.kept.get(a, a.size) < a.size)

    def _expected(self, call: OpCall, shapes: list[tuple[int, ...]]) -> Any:
        """Results of the shapes they should have; the original run shows how many, in what form."""
        tensors = [t for a in call.args for t in tensors_in(a)]
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), tensors[0].dtype if tensors else torch.float32)
        return _in_form(call, [torch.empty(s, dtype=dtype, device="meta") for s in shapes])

    def _scalars(self, record: OpRecord, call: OpCall) -> None:
        if record.scale_of is not None:
            before, after = record.scale_of.size, sizes((record.scale_of,), self.kept)[0]
            if before != after:
                self.rescales.append(Rescale(record, (after / before) ** 0.5, 0))
        for key, old in record.scalars:
            given = call.args[key] if isinstance(key, int) else call.kwargs[key]
            new = number_in(given) if isinstance(given, Tensor) else float(given)
            if new is None or old == new:
                continue
            factor = _restoring(call.name.rstrip("_"), key, old, new)
            if factor is None:
                self.conflicts.append(Conflict(f"the number {old:g} becomes {new:g}", record, self._blame(record)))
            else:
                self.rescales.append(Rescale(record, factor, 1 if key in (0, "alpha") else 0))

    def _blame(self, record: OpRecord) -> frozenset[Atom]:
        return self._cut(tuple(s for axes in (*record.results, *record.arguments) for s in axes))


_FACTORS = (
    ("scaled_dot_product_attention", 6), ("scaled_dot_product_attention", "scale"), ("flex_attention", 5),
    ("baddbmm", "alpha"), ("addmm", "alpha"),
)  # fmt: skip


def _restoring(name: str, key: int | str, old: float, new: float) -> float | None:
    """The factor on the other argument that undoes a changed number, where there is one."""
    if not old or not new:
        return None
    if name == "mul" or (name, key) in _FACTORS:
        return old / new
    return new / old if name in ("div", "true_divide") and key == 1 else None


def _depends_on_data(func: Any) -> bool:
    tags = getattr(func, "tags", ())
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _in_form(call: OpCall, made: list[Tensor]) -> Any:
    """Results as the op returns them: one tensor, a list, or a tuple."""
    returns = getattr(getattr(call.func, "_schema", None), "returns", None)
    if returns is not None and len(returns) == 1 and returns[0].type.kind() == "ListType":
        return made
    return made[0] if len(made) == 1 else tuple(made)


def replay(graph: Graph, kept: Mapping[Atom, int], attributes: Mapping[Path, float]) -> Replay:
    """Repeat the recorded runs at the cut sizes, and return what does not agree; the model stays as it was."""
    shapes = {s.name: sizes(s.axes, kept) for s in graph.states.values()}
    handler = Replay(graph, kept)

    def prepare(recorded: RecordedRun) -> None:
        for name, module in graph.model.named_modules():  # the model may have been switched since
            module.__dict__["training"] = graph.modes.get(name, module.training)
        run_beside(graph.model, recorded.beside)
        rewrite(graph.model, *graph.layer_notes)
        rewrite(graph.model, {key_of(p): v for p, v in attributes.items() if type(v) is float}, {})
        leave_out(graph.model, [(x.name, x.form, x.container is not None) for x in graph.left_out])
        if recorded.other_mode:
            switch(graph.model)

    def at_cut_sizes(path: Path, n: int) -> int:
        return int(attributes.get(path, n))

    try:
        for recorded in graph.runs:
            handler.begin(recorded, Execution(graph.model, False, shapes, graph.draw))
            run(
                handler,
                handler.execution,
                graph.model,
                call_of(graph.calls, recorded),
                at_cut_sizes,
                partial(prepare, recorded),
            )
    except Exception as error:
        if not handler.conflicts:
            done = handler.ops[handler.reached - 1] if handler.reached > handler.start else None
            what = f"the control flow changes: {error}" if isinstance(error, Diverged) else f"{type(error).__name__}: {error}"
            handler.conflicts.append(Conflict(what, done, frozenset()))
    return handler
