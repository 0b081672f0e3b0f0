"""Calibration is replay with taps: the model runs on real data, and chosen ops of the recorded run show their tensors.

A `Taps` is entered around any code that calls the model, a loss with its backward pass included. Each call of the model
is held against the recorded run, op by op; where it takes another path, the error says where. The model itself stays
as it was: mode, flags, buffers, gradients, random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import TraceError
from bough.graph import Graph, OpRecord
from bough.tracing.execution import held_tensors
from bough.tracing.held import substituted
from bough.tracing.replay import REARRANGING
from bough.tracing.stream import Call, Stream, tensors_in
from bough.tracing.trace import unchanged_rng
from bough.tracing.wrapped import eagerly

Reader = Callable[[OpRecord, Sequence[Tensor]], None]
"""Called with an op and the real tensors of its arguments, or of its results, in the order in which they were recorded."""


_SKIPPED = REARRANGING | {"detach"}  # autograd detaches what it saves
_NAMES = {"_embedding_bag_forward_only": "_embedding_bag"}  # without gradients: with them


@dataclass(frozen=True, slots=True)
class Tap:
    """Reads op number `op`: its arguments before it runs, or its results after."""

    op: int
    read: Reader
    results: bool = False


@contextmanager
def tapped(graph: Graph, taps: Sequence[Tap]) -> Iterator[nn.Module]:
    """While inside, each call of `graph.model` shows the tapped tensors; gives the model.

    Tensors of arguments belong to autograd where it is on: `tensor.register_hook` gives their gradients.

    Raises:
        TraceError: from the model's call: the run takes another path than the traced one.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> with tapped(graph, [Tap(2, lambda op, tensors: print(op.name, tuple(tensors[0].shape)))]) as model:
        ...     y = model(torch.randn(32, 4))
        linear (32, 8)
    """
    model, by_op = graph.model, _by_op(taps)
    inner = model._call_impl

    def followed(*args: Any, **kwargs: Any) -> Any:
        handler = _Tapping(graph, by_op)
        with Stream(handler):
            result = inner(*args, **kwargs)
        handler.finish()
        return result

    with eagerly(), substituted(model, lambda path, n: n):
        model.__dict__["_call_impl"] = followed
        yield model


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards mode, flags, gradients, buffers and the random number generators are as before."""
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    values = [(t, t.detach().clone()) for _, t, parameter, _ in held_tensors(model) if not parameter]
    try:
        with unchanged_rng(), torch.random.fork_rng(devices=[]):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        with torch.no_grad():
            for tensor, value in values:
                if not tensor.is_inference() and not torch.equal(tensor, value):
                    tensor.copy_(value)


def _by_op(taps: Sequence[Tap]) -> dict[int, tuple[list[Reader], list[Reader]]]:
    found: dict[int, tuple[list[Reader], list[Reader]]] = {}
    for tap in taps:
        found.setdefault(tap.op, ([], []))[tap.results].append(tap.read)
    return found


def _name(op: OpRecord | Call) -> str:
    return _NAMES.get(op.name, op.name)


class _Tapping:
    """Runs each op as it is, and shows the tensors of those tapped."""

    def __init__(self, graph: Graph, taps: Mapping[int, tuple[list[Reader], list[Reader]]]) -> None:
        self.graph, self.taps = graph, taps
        self._at = 0
        self._names = {id(m): name for name, m in graph.model.named_modules()} if graph.real else {}
        self._sites = {(op.name, op.where, op.module): op for op in reversed(graph.ops)} if graph.real else {}

    def owned(self, tensor: Tensor) -> Tensor:
        return tensor

    def shape(self, tensor: Tensor) -> torch.Size:
        return tensor.shape

    def device(self, tensor: Tensor) -> torch.device:
        return tensor.device

    def integers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        pass

    def op(self, call: Call) -> Any:
        record = self._next(call)
        taps = self.taps.get(record.index) if record is not None else None
        if taps is None:
            return call.func(*call.args, **call.kwargs)
        assert record is not None
        before, after = taps
        if before:
            arguments = [*tensors_in(call.args), *tensors_in(tuple(call.kwargs.values()))]
            self._show(record, before, arguments, [len(a) for a in record.arguments])
        result = call.func(*call.args, **call.kwargs)
        if after:
            self._show(record, after, tensors_in(result), [len(a) for a in record.results])
        return result

    def _show(self, record: OpRecord, readers: list[Reader], tensors: list[Tensor], dims: list[int]) -> None:
        if [t.dim() for t in tensors] != dims:
            found = ", ".join(str(list(t.shape)) for t in tensors)
            raise self._diverged(f"{record.name} is given tensors of shapes {found}", record)
        for read in readers:
            read(record, tensors)

    def _next(self, call: Call) -> OpRecord | None:
        """The recorded op that the call repeats; None for a rearrangement that other sizes brought about."""
        ops, at, name = self.graph.ops, self._at, _name(call)
        if at < len(ops) and _name(ops[at]) == name and (not self.graph.real or ops[at].where == call.where):
            self._at = at + 1
            return ops[at]
        if self.graph.real and (site := self._site(call)) is not None:
            self._at = site.index + 1
            return site
        while at < len(ops) and _name(ops[at]) != name and ops[at].name in _SKIPPED:
            at += 1
        if at < len(ops) and _name(ops[at]) == name and ops[at].where == call.where:
            self._at = at + 1
            return ops[at]
        if call.name in _SKIPPED:
            return None
        raise self._diverged(f"{call.name} runs ({call.where})", ops[self._at] if self._at < len(ops) else None)

    def _site(self, call: Call) -> OpRecord | None:
        """Of a run whose path depends on data: the op on the same line of the same module."""
        return self._sites.get((call.name, call.where, self._names.get(id(call.module), "")))

    def finish(self) -> None:
        """The model has returned: nothing of the recorded run may be left."""
        left = [op for op in self.graph.ops[self._at :] if op.name not in _SKIPPED]
        if left and not self.graph.real:
            raise self._diverged("the model returns", left[0])

    def _diverged(self, what: str, record: OpRecord | None) -> TraceError:
        was = f"{record.name} of {record.module or 'the model'} ({record.where})" if record else "the end of the model"
        return TraceError(
            f"the run on data takes another path than the traced one: {what} where the trace has {was}. Trace the model in eval "
            "mode, on example inputs of the same form as the data (dims, optional arguments, a batch of at least 2)."
        )
