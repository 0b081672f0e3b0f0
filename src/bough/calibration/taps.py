"""Taps: observers of the tensors of recorded operators while the model runs on real data.

`tapped` is a context manager around any code that calls the model, including a loss with its backward pass. Each call of the
model is matched with the recorded run, operator by operator; if the call takes another path, the error states where.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bough.calls import OBSERVED, Call
from bough.errors import TraceError
from bough.graph import Graph, OpRecord
from bough.ops import spec
from bough.spaces import Space, normal
from bough.tracing.capture.attribute_numbers import substituted
from bough.tracing.capture.caches import fresh_caches
from bough.tracing.capture.execution import model_tensors
from bough.tracing.capture.location import here
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.stream import OpCall, Runner, Stream, swap, tensors_in
from bough.tracing.capture.wrapped import eagerly

Reader = Callable[[OpRecord, Sequence[Tensor]], Sequence[Tensor] | None]
"""(op, tensors) -> replacements or None. The tensors are the arguments or results of a run, in the recorded order.

Tensors that a reader of arguments returns replace the arguments; do not replace arguments if gradients are needed.
"""

_NAMES = {"_embedding_bag_forward_only": "_embedding_bag"}  # name without gradients -> name with gradients


@dataclass(frozen=True, slots=True)
class Tap:
    """An observer of one recorded operator.

    Attributes:
        op: index of the operator in `graph.ops`.
        read: called with the operator's arguments before it runs, or with its results after.
        results: whether results are read instead of arguments.
    """

    op: int
    read: Reader
    results: bool = False


@contextmanager
def tapped(graph: Graph, taps: Sequence[Tap]) -> Iterator[nn.Module]:
    """Call the readers of `taps` in each run of the first call's method inside the context; yield the model.

    With gradients enabled, arguments are part of the autograd graph, so `tensor.register_hook` observes their gradients.

    Raises:
        TraceError: from a call of the model: the run takes another path than the traced one.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> with tapped(graph, [Tap(2, lambda op, tensors: print(op.name, tuple(tensors[0].shape)))]) as model:
        ...     y = model(torch.randn(32, 4))
        linear (32, 8)
    """
    model, by_op = graph.model, _by_op(graph, taps)
    constant = _constant_ops(graph.ops) - by_op.keys()

    def observed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call_with_taps(*args: Any, **kwargs: Any) -> Any:
            handler = _TapRunner(graph, by_op, constant)
            with Stream(handler), substituted(model, lambda path, n: n), fresh_caches(model, hooks=False):
                # a fresh cache per call: the next call must not reuse values that this one cached
                result = method(*args, **kwargs)
            handler.finish()
            return result

        return call_with_taps

    with eagerly(), substituted(model, lambda path, n: n):
        _observe(model, graph.call, observed)
        yield model


def _observe(model: nn.Module, call: Call, observed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put the observed form of what a call runs in its place, in the instance dictionary of its module."""
    if not isinstance(call.method, str):
        model.__dict__[OBSERVED] = observed
        return
    bound = call.bound(model)
    if isinstance(bound, nn.Module):  # the model itself, or one of its modules
        bound.__dict__["_call_impl"] = observed(bound._call_impl)
        return
    holder, _, name = call.method.rpartition(".")
    owner = attrgetter(holder)(model) if holder else model
    owner.__dict__[name] = observed(bound)


@contextmanager
def preserve_state(model: nn.Module, written: Collection[str] = ()) -> Iterator[None]:
    """Put the model in eval mode; on exit, restore mode, flags, gradients, buffers, attributes and random number generators.

    Args:
        model: the model.
        written: names of parameters whose values are restored as well, because `forward` changes them (`Graph.written`).
    """
    gradients = torch.is_grad_enabled()
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    saved = [
        (t, t.detach(), t.detach().clone()) for n, t, parameter, _ in model_tensors(model) if not parameter or n in written
    ]
    try:
        # leaving inference mode turns gradients on
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
            unchanged_rng(),
            substituted(model, lambda path, n: n),
        ):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag, gradient in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
            parameter.grad = gradient
        put_values(saved)


def put_values(saved: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Give tensors their memory and values back; of each the tensor, an alias of its memory, and a copy of its values."""
    with torch.no_grad():
        for tensor, data, value in saved:
            if tensor.is_inference():
                continue
            if tensor.layout != torch.strided:
                continue  # torch compares and copies no sparse values; `forward` writes none in place
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if not torch.equal(tensor, value):
                tensor.copy_(value)


@dataclass(slots=True)
class _Tapped:
    """Readers of one operator, and the required sizes of the prunable axes of its tensors; None where any size is accepted."""

    before: list[Reader]
    after: list[Reader]
    arguments: list[list[int | None]]
    results: list[list[int | None]]


def _by_op(graph: Graph, taps: Sequence[Tap]) -> dict[int, _Tapped]:
    """Return the taps grouped by operator."""
    in_states = {a for s in graph.states.values() for axis in s.axes for a in normal(axis).atoms}
    units = {g.atom for g in graph.groups}

    def sizes(tensors: Sequence[tuple[Space, ...]]) -> list[list[int | None]]:
        return [[a.size if has_units_only(a) else None for a in axes] for axes in tensors]

    def has_units_only(axis: Space) -> bool:  # no batch and no positions
        atoms = normal(axis).atoms
        return bool(units.intersection(atoms)) and in_states.issuperset(atoms)

    by_op: dict[int, _Tapped] = {}
    for tap in taps:
        op = graph.ops[tap.op]
        if tap.op not in by_op:
            by_op[tap.op] = _Tapped([], [], sizes(op.arguments), sizes(op.results))
        (by_op[tap.op].after if tap.results else by_op[tap.op].before).append(tap.read)
    return by_op


def _constant_ops(ops: Sequence[OpRecord]) -> frozenset[int]:
    """Return the operators that depend on parameters, buffers and constants alone; a model may cache their results."""
    constant, values = set[int](), {-1}
    for op in ops:
        if values.issuperset(op.inputs) or op.name == "lift_fresh":
            constant.add(op.index)
            values.update(op.values)
    return frozenset(constant)


def _name(op: OpRecord | OpCall) -> str:
    """Return the operator's name, the same with and without gradients."""
    return _NAMES.get(op.name, op.name)


class _TapRunner(Runner):
    """Runs each operator unchanged and calls the readers of those that are tapped."""

    def __init__(self, graph: Graph, taps: Mapping[int, _Tapped], constant: frozenset[int]) -> None:
        self.graph, self.taps, self.constant = graph, taps, constant
        self.units = {g.atom for g in graph.groups}
        self._at = 0
        self._modules = {id(m): name for name, m in graph.model.named_modules()}
        self._dropouts = {name for name, m in graph.model.named_modules() if isinstance(m, _DropoutNd)}
        _, file, line = here()
        self._caller = f"{file}:{line}"
        self._op_at = {(op.name, op.where, op.module): op for op in reversed(graph.ops)} if graph.real else {}

    def op(self, call: OpCall) -> Any:
        record = self._next(call)
        tapped = self.taps.get(record.index) if record is not None else None
        if record is None or tapped is None:
            return call.func(*call.args, **call.kwargs)
        args, kwargs = call.args, call.kwargs
        if tapped.before:
            tensors = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
            changed = self._read(record, tapped.before, tensors, tapped.arguments)
            if changed is not tensors:
                new = iter(changed)
                args, kwargs = swap(args, lambda _: next(new)), {k: swap(v, lambda _: next(new)) for k, v in kwargs.items()}
        result = call.func(*args, **kwargs)
        if tapped.after:
            self._read(record, tapped.after, tensors_in(result), tapped.results)
        return result

    def _read(
        self, record: OpRecord, readers: list[Reader], tensors: Sequence[Tensor], expected: list[list[int | None]]
    ) -> Sequence[Tensor]:
        """Call the readers; return the tensors, or their replacements."""
        fits = [
            len(e) == t.dim() and all(n in (None, m) for n, m in zip(e, t.shape, strict=True))
            for t, e in zip(tensors, expected, strict=False)
        ]
        if len(tensors) != len(expected) or not all(fits):
            shapes = ", ".join(str(list(t.shape)) for t in tensors)
            raise self._diverged(f"{record.name} is given tensors of shapes {shapes}", record)
        for read in readers:
            tensors = read(record, tensors) or tensors
        return tensors

    def _next(self, call: OpCall) -> OpRecord | None:
        """Return the recorded operator that corresponds to the call; None if there is none and the call contracts nothing.

        Other sizes are reshaped differently, other devices fill masks differently, and autograd detaches saved tensors.
        """
        ops, at = self.graph.ops, self._at
        while at < len(ops) and not self._same(ops[at], call) and self._is_optional(ops[at]):
            at += 1
        if at < len(ops) and self._same(ops[at], call):
            self._at = at + 1
            return ops[at]
        if self.graph.real and (site := self._recorded_at(call)) is not None:
            self._at = site.index + 1
            return site
        if spec(call.name).contracts:
            raise self._diverged(f"{call.name} runs ({call.where})", ops[self._at] if self._at < len(ops) else None)
        return None

    def _same(self, op: OpRecord, call: OpCall) -> bool:
        """Whether operator, module and source line agree; calls from torch's own Python have the line of their caller."""
        if _name(op) != _name(call) or op.module != self._modules.get(id(call.module), ""):
            return False
        return op.where == call.where or call.where == self._caller

    def _is_optional(self, op: OpRecord) -> bool:
        """Whether the recorded operator may be absent in a real run.

        That is so for reshapes, dropout (traced in training mode), operators that touch no unit of a group (masks, cached
        positions), and operators whose result is the same in each run.
        """
        if spec(op.name).rearranges or op.name == "_to_copy":  # copies between devices: the trace had shapes instead of tensors
            return True
        if op.module in self._dropouts or op.index in self.constant:
            return True
        touched = (a for axes in (*op.arguments, *op.results) for a in axes)
        return spec(op.name).contracts is None and not any(self.units.intersection(normal(a).atoms) for a in touched)

    def _recorded_at(self, call: OpCall) -> OpRecord | None:
        """Return the recorded operator on the same line of the same module, for control flow that depends on data."""
        return self._op_at.get((call.name, call.where, self._modules.get(id(call.module), "")))

    def finish(self) -> None:
        """Raise TraceError if the model has returned and recorded operators that must run are left."""
        left = [op for op in self.graph.ops[self._at :] if not self._is_optional(op)]
        if left and not self.graph.real:
            raise self._diverged("the model does without an op", left[0])

    def _diverged(self, what: str, record: OpRecord | None) -> TraceError:
        """Return the error for a run that takes another path than the traced one."""
        was = f"{record.name} of {record.module or 'the model'} ({record.where})" if record else "the end"
        return TraceError(
            f"the run on data takes another path than the traced one: {what} where the trace has {was}. Trace the model in "
            "eval mode, on example inputs of the same form as the data (dims, optional arguments, a batch of at least 2)."
        )
