"""The handler that types a run: each op by its rule, each integer argument by its meaning."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import TraceError
from bough.graph import OpRecord, State, UnknownOp, atoms_of
from bough.ops import POINTWISE, Context, Notes, Typing, spec
from bough.ops.numbers import follow
from bough.spaces import Space, normal
from bough.storage.tensors import memory
from bough.tracing.capture.execution import Execution, model_tensors, number_in
from bough.tracing.capture.provenance import AxisSize, Equation, TracedInt, expression_of
from bough.tracing.capture.stream import OpCall, tensors_in, written
from bough.tracing.typing.arguments import meanings, normalized_shape


class Value:
    """What the recorder knows of a tensor: its type, its number, its memory, the state it is."""

    __slots__ = ("constant", "memory_of", "number", "run", "shape", "state", "storage", "typing", "written")

    def __init__(self, typing: Typing, number: int, storage: int, state: str = "", constant: bool = False) -> None:
        self.typing, self.number, self.storage, self.state = typing, number, storage, state
        self.written: list[Space] = []  # spaces whose masked units a write to this memory made other than zero; views share it
        self.memory_of = state  # the name of the model's tensor whose memory it is
        self.constant = constant  # depends neither on weights nor on inputs
        self.shape: torch.Size | None = None
        self.run: object = None  # the recorder's mark


class Recorder:
    """Records ops, storages, equations and unknown ops of the runs of one model; `begin` comes before each run."""

    execution: Execution

    def __init__(self, model: nn.Module) -> None:
        self.module_names = {id(m): name for name, m in model.named_modules()}
        self.context = Context(_weakly(self.typing), _weakly(self._locate))
        self.ops: list[OpRecord] = []
        self.unknown: list[UnknownOp] = []
        self.equations: list[Equation] = []
        self.states: dict[str, State] = {}
        self.storages: list[list[Any]] = []  # [axes, dtype, born, dies]
        self._mark = object()  # in place of the recorder itself, which holds all values
        self._count = 0
        self._alive: list[Tensor] = []
        self.written: set[str] = set()  # names of the model's tensors whose values the run changes
        self.tied: set[int] = set()  # ids of the axes of states that the user ties to others
        self.last = Notes()  # what the rule noted of the last op
        tied: dict[tuple[Hashable, ...], tuple[Space, ...]] = {}
        for name, tensor, parameter, saved in model_tensors(model):
            axes = tied.setdefault(memory(tensor), tuple(self.context.fresh(n) for n in tensor.shape))
            self.states[name] = State(name, axes, tensor.element_size(), parameter, saved, tensor.is_floating_point())

    def begin(self, execution: Execution) -> None:
        """Types the stand-ins of the model's tensors."""
        self.execution = execution
        self.written.clear()
        for name, state in self.states.items():
            typing = Typing(state.axes, (state.parameter,) * len(state.axes), weight=True)
            self._attach(execution.names[name], Value(typing, -1, -1, name))

    def add_input(self, tensor: Tensor, what: str) -> None:
        stand_in = self.execution.stand_in(tensor)
        if self._known(stand_in) is None:
            axes = tuple(self.context.data(n, what) for n in tensor.shape)
            self._attach(stand_in, self._value(Typing(axes, (False,) * len(axes)), tensor.dtype, -1))

    def _value(
        self, typing: Typing, dtype: torch.dtype, born: int, storage: int | None = None, constant: bool = False
    ) -> Value:
        if storage is None:
            self.storages.append([typing.axes, dtype, born, born])
            storage = len(self.storages) - 1
        self._count += 1
        return Value(typing, self._count - 1, storage, constant=constant)

    def _attach(self, tensor: Tensor, value: Value) -> None:
        value.run = self._mark
        tensor._bough = value  # type: ignore[attr-defined]

    def _known(self, tensor: Tensor) -> Value | None:
        """What this run knows of a tensor; what a model keeps in a cache may come from an earlier run."""
        value: Value | None = getattr(tensor, "_bough", None)
        return value if value is not None and value.run is self._mark else None

    def value(self, tensor: Tensor) -> Value:
        value = self._known(tensor)
        if value is None:
            axes = tuple(self.context.data(n, "a tensor that the model does not hold") for n in tensor.shape)
            value = self._value(Typing(axes, (False,) * len(axes)), tensor.dtype, -1, constant=True)
            self._attach(tensor, value)
        return value

    def typing(self, tensor: Tensor) -> Typing:
        value = self.value(tensor)
        typing = value.typing
        if not value.written or not any(typing.null):
            return typing
        atoms = atoms_of(tuple(value.written))
        null = tuple(n and atoms.isdisjoint(normal(a).atoms) for n, a in zip(typing.null, typing.axes, strict=True))
        return Typing(typing.axes, null, typing.weight, typing.ranges, typing.counted)

    # The handler's side of the stream

    def owned(self, tensor: Tensor) -> Tensor:
        if self._known(tensor) is not None:
            return tensor
        found = self.execution.stand_ins.get(id(tensor))
        if found is None:
            found = self.execution.adopt(tensor)
            self.value(found)
        return found

    def number(self, tensor: Tensor) -> int | None:
        """Return the number of a tensor's value; None of a tensor that no operator of this run has read or made."""
        value = self._known(tensor) or self._known(self.execution.stand_ins.get(id(tensor), tensor))
        return None if value is None else value.number

    def shape(self, tensor: Tensor) -> torch.Size:
        value = self.value(tensor)
        if value.shape is None:
            value.shape = torch.Size(
                TracedInt(n, AxisSize(axis)) if n > 1 else n for n, axis in zip(tensor.shape, value.typing.axes, strict=True)
            )
        return value.shape

    def device(self, tensor: Tensor) -> torch.device:
        return self.execution.device(tensor)

    def set_data(self, tensor: Tensor, data: Tensor | None) -> None:
        assert data is not None
        self.execution.set_data(tensor, data)

    def op(self, call: OpCall) -> Any:
        tensors = tensors_in(call.args) + (tensors_in([*call.kwargs.values()]) if call.kwargs else [])
        values = [self.value(t) for t in tensors]
        rule = spec(call.name).typing or spec(call.name.rstrip("_")).typing or (POINTWISE if call.pointwise else None)
        if rule is None and "nested" in call.name:
            module, where = self._locate(call)
            raise TraceError(
                f"{module or 'the model'} makes a nested tensor ({call.name}, {where}), whose rows have sizes of their own, "
                "which bough can not follow: let it work on padded tensors, with a mask"
            )
        result = self.execution.run(call)
        results = tensors_in(result)
        context = self.context
        context.start(call)
        if rule is None:
            typed = self._unknown(call, values, results)
        else:
            given = rule(context, call, result) if results or spec(call.name).reads_values else []
            typed = given if isinstance(given, list) else [given]
            if [tuple(a.size for a in t.axes) for t in typed] != [tuple(r.shape) for r in results]:
                typed = self._unknown(call, values, results)  # a form of the op that its rule does not know
        follow(context, call, [v.typing for v in values], typed, results)
        self._record(call, values, typed, tensors, result, results)
        return result

    def _unknown(self, call: OpCall, values: list[Value], results: list[Tensor]) -> list[Typing]:
        if not results:
            return []
        module, where = self._locate(call)
        free = [a for v in values for a in v.typing.axes if any(x.reason is None for x in normal(a).atoms)]
        if free:
            self.unknown.append(UnknownOp(call.name, module, where))
        for axis in free:
            self.context.freeze(axis, "unknown op")
        return [Typing(tuple(self.context.data(n, "unknown op") for n in r.shape), (False,) * r.dim()) for r in results]

    def _record(
        self, call: OpCall, values: list[Value], typed: list[Typing], tensors: list[Tensor], result: Any, results: list[Tensor]
    ) -> None:
        numbers = []
        constant = all(v.constant for v in values)
        if call.name == "set_data":
            self._write(values[0].memory_of)
        for tensor, typing, target in zip(results, typed, written(call, results), strict=True):
            old = self._known(tensor) or self._known(target)
            if old is not None:  # in place, or handed through
                for a, b in zip(old.typing.axes, typing.axes, strict=True) if call.writes else ():
                    self.context.unify(a, b)
                old.typing = Typing(typing.axes, typing.null, old.typing.weight, typing.ranges, typing.counted)
                new = self._value(old.typing, tensor.dtype, call.index, old.storage, constant)
                new.written, new.memory_of = old.written, old.memory_of
                if call.writes:
                    self._write(old.memory_of)
                    new.written += [a for a, n in zip(typing.axes, typing.null, strict=True) if not n]
            else:
                shared = _viewed(tensor, tensors, values)
                storage = None if shared is None else shared.storage
                new = self._value(typing, tensor.dtype, call.index, storage, constant)
                if shared is not None:
                    new.written, new.memory_of = shared.written, shared.memory_of
            for holder in {id(t): t for t in (tensor, target)}.values():
                self._attach(holder, new)
            numbers.append(new.number)
        notes = self.context.notes
        if call.name in ("reshape", "one_hot"):
            self.integers_of_whole(call, results[0], notes)
        module, where = self._locate(call)
        for value in values:
            if value.storage >= 0:
                self.storages[value.storage][3] = call.index
        if call.name in ("layer_norm", "rms_norm"):
            self._equate(normalized_shape(call.args, notes), where)
        if call.name == "group_norm":
            self._equate([(call.args[1], notes.integers["num_groups"])], where)
        detail = tuple(_plain(a) for a in call.args)
        number = constant and all(t.numel() == 1 for t in results)  # known where it is used
        made = number and bool(results) and not values  # of a width, perhaps: of the new one then
        scalars = () if number else tuple(self._scalars(call, any(t.is_floating_point() for t in results)))
        self.ops.append(
            OpRecord(
                call.index, call.name, module, where,
                tuple(v.number for v in values), tuple(v.typing.axes for v in values), tuple(v.state for v in values),
                tuple(numbers), tuple(t.axes for t in typed), tuple(notes.macs),
                tuple(notes.renormalized), tuple(notes.undefined),
                scalars, notes.scale_of, detail, None if made else self._outcome(result, results),
                tuple(notes.identified), tuple(notes.counts),
                tuple(t.ranges for t in typed) or tuple(r[1] for r in (self.context.read,) if r),
                tuple(notes.combined), tuple(notes.narrower),
            )
        )  # fmt: skip
        self.last = notes

    def _write(self, name: str) -> None:
        if name:
            self.written.add(name)

    def _scalars(self, call: OpCall, floats: bool) -> Iterator[tuple[int | str, float]]:
        """The numbers among the arguments that are not sizes: floats, factors of pointwise ops, constants of no dims."""
        arguments: dict[int | str, Any] = dict(enumerate(call.args))
        arguments.update(call.kwargs)
        for key, given in arguments.items():
            if isinstance(given, Tensor):
                number = number_in(given) if floats and self.value(given).constant else None
                if number is not None:
                    yield key, number
            elif type(given) is float or (type(given) in (int, TracedInt) and floats and call.pointwise):
                yield key, float(given)

    def _outcome(self, result: Any, results: list[Tensor]) -> Any:
        """What is kept of a run on real values: numbers, and tensors other than floats, on which its path may depend."""
        if not self.execution.real:
            return None
        if not results:
            return result
        kept = [None if t.is_floating_point() or t.is_complex() else t.detach().clone() for t in results]
        return None if all(t is None for t in kept) else kept

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        def axes_of(tensor: Tensor) -> tuple[Space, ...]:
            return self.value(self.owned(tensor)).typing.axes

        self._equate(meanings(func, axes_of, args, kwargs, result, self.last), self.ops[-1].where if self.ops else "")

    def integers_of_whole(self, call: OpCall, result: Tensor, notes: Notes) -> None:
        pairs = meanings(call.func, lambda t: self.value(t).typing.axes, call.args, call.kwargs, result, notes)
        self._equate(pairs, f"{call.file}:{call.line}")

    def _equate(self, pairs: list[tuple[Any, Space]], where: str) -> None:
        for integer, space in pairs:
            expression = expression_of(integer)
            if expression is not None and not (isinstance(expression, AxisSize) and expression.space is space):
                self.equations.append(Equation(expression, space, where))

    def _locate(self, call: Any) -> tuple[str, str]:
        return self.module_names.get(id(call.module), ""), f"{call.file}:{call.line}"


def _viewed(result: Tensor, tensors: list[Tensor], values: list[Value]) -> Value | None:
    """The argument that the result is a view of."""
    if result.layout != torch.strided:
        return None
    memory = result.untyped_storage()._cdata
    for tensor, value in zip(tensors, values, strict=True):
        if tensor.layout == torch.strided and tensor.device == result.device and tensor.untyped_storage()._cdata == memory:
            return value
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    return value


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does not hold its object: a cycle would hold all tensors of the run until a collection of cycles."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        found = reference()
        assert found is not None
        return found(*args)

    return call
