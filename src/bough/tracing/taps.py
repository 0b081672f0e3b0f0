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
from torch.nn.modules.dropout import _DropoutNd

from bough.errors import TraceError
from bough.graph import Graph, OpRecord
from bough.spaces import Space, normal
from bough.tracing.caches import fresh_caches
from bough.tracing.contractions import CONTRACTING
from bough.tracing.execution import held_tensors
from bough.tracing.held import substituted
from bough.tracing.location import here
from bough.tracing.randomness import unchanged_rng
from bough.tracing.replay import REARRANGING
from bough.tracing.stream import Call, Runner, Stream, swap, tensors_in
from bough.tracing.wrapped import eagerly

Reader = Callable[[OpRecord, Sequence[Tensor]], Sequence[Tensor] | None]
"""Called with an op and the real tensors of its arguments, or of its results, in the order in which they were recorded.
What a reader of arguments returns is used in their place; not where gradients are asked for."""


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
    model, by_op = graph.model, _by_op(graph, taps)
    inner, constant = model._call_impl, _constant(graph.ops) - by_op.keys()

    def followed(*args: Any, **kwargs: Any) -> Any:
        handler = _Tapping(graph, by_op, constant)
        with Stream(handler), substituted(model, lambda path, n: n), fresh_caches(model, hooks=False):
            # what one call notes, the next must not find
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
        with unchanged_rng():
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


@dataclass(slots=True)
class _Tapped:
    """The readers of an op, and the sizes that its tensors' prunable axes must have."""

    before: list[Reader]
    after: list[Reader]
    arguments: list[list[int | None]]
    results: list[list[int | None]]


def _by_op(graph: Graph, taps: Sequence[Tap]) -> dict[int, _Tapped]:
    held = {a for s in graph.states.values() for axis in s.axes for a in normal(axis).atoms}
    units = {g.atom for g in graph.groups}

    def sizes(tensors: Sequence[tuple[Space, ...]]) -> list[list[int | None]]:
        return [[a.size if _pure(a) else None for a in axes] for axes in tensors]

    def _pure(axis: Space) -> bool:  # made of units, without batch or positions
        atoms = normal(axis).atoms
        return bool(units.intersection(atoms)) and held.issuperset(atoms)

    found: dict[int, _Tapped] = {}
    for tap in taps:
        op = graph.ops[tap.op]
        if tap.op not in found:
            found[tap.op] = _Tapped([], [], sizes(op.arguments), sizes(op.results))
        (found[tap.op].after if tap.results else found[tap.op].before).append(tap.read)
    return found


def _constant(ops: Sequence[OpRecord]) -> frozenset[int]:
    """The ops that read held tensors and constants alone: a model may keep what they give for its next run."""
    found, values = set[int](), {-1}
    for op in ops:
        if values.issuperset(op.inputs) or op.name == "lift_fresh":
            found.add(op.index)
            values.update(op.values)
    return frozenset(found)


def _name(op: OpRecord | Call) -> str:
    return _NAMES.get(op.name, op.name)


class _Tapping(Runner):
    """Runs each op as it is, and shows the tensors of those tapped."""

    def __init__(self, graph: Graph, taps: Mapping[int, _Tapped], constant: frozenset[int]) -> None:
        self.graph, self.taps, self.constant = graph, taps, constant
        self.units = {g.atom for g in graph.groups}
        self._at = 0
        self._modules = {id(m): name for name, m in graph.model.named_modules()}
        self._dropouts = {name for name, m in graph.model.named_modules() if isinstance(m, _DropoutNd)}
        _, file, line = here()
        self._caller = f"{file}:{line}"
        self._sites = {(op.name, op.where, op.module): op for op in reversed(graph.ops)} if graph.real else {}

    def op(self, call: Call) -> Any:
        record = self._next(call)
        tapped = self.taps.get(record.index) if record is not None else None
        if record is None or tapped is None:
            return call.func(*call.args, **call.kwargs)
        args, kwargs = call.args, call.kwargs
        if tapped.before:
            tensors = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
            changed = self._show(record, tapped.before, tensors, tapped.arguments)
            if changed is not tensors:
                new = iter(changed)
                args, kwargs = swap(args, lambda _: next(new)), {k: swap(v, lambda _: next(new)) for k, v in kwargs.items()}
        result = call.func(*args, **kwargs)
        if tapped.after:
            self._show(record, tapped.after, tensors_in(result), tapped.results)
        return result

    def _show(
        self, record: OpRecord, readers: list[Reader], tensors: Sequence[Tensor], expected: list[list[int | None]]
    ) -> Sequence[Tensor]:
        fits = [
            len(e) == t.dim() and all(n in (None, m) for n, m in zip(e, t.shape, strict=True))
            for t, e in zip(tensors, expected, strict=False)
        ]
        if len(tensors) != len(expected) or not all(fits):
            found = ", ".join(str(list(t.shape)) for t in tensors)
            raise self._diverged(f"{record.name} is given tensors of shapes {found}", record)
        for read in readers:
            tensors = read(record, tensors) or tensors
        return tensors

    def _next(self, call: Call) -> OpRecord | None:
        """The recorded op that the call repeats; None for one that is no part of the trace and contracts nothing: other sizes
        are rearranged in other ways, devices fill masks in other ways, autograd detaches what it saves."""
        ops, at = self.graph.ops, self._at
        while at < len(ops) and not self._same(ops[at], call) and self._bystander(ops[at]):
            at += 1
        if at < len(ops) and self._same(ops[at], call):
            self._at = at + 1
            return ops[at]
        if self.graph.real and (site := self._site(call)) is not None:
            self._at = site.index + 1
            return site
        if call.name in CONTRACTING:
            raise self._diverged(f"{call.name} runs ({call.where})", ops[self._at] if self._at < len(ops) else None)
        return None

    def _same(self, op: OpRecord, call: Call) -> bool:
        """The same op of the same module on the same line; what only torch's own Python runs has its caller's line."""
        if _name(op) != _name(call) or op.module != self._modules.get(id(call.module), ""):
            return False
        return op.where == call.where or call.where == self._caller

    def _bystander(self, op: OpRecord) -> bool:
        """Whether the op may fall away: it rearranges, drops out (traced in training mode), touches no unit of a group (a mask,
        positions that are cached), or gives the same in each run."""
        if op.name in REARRANGING or op.name == "_to_copy":  # between devices, where shapes stood in for tensors
            return True
        if op.module in self._dropouts or op.index in self.constant:
            return True
        touched = (a for axes in (*op.arguments, *op.results) for a in axes)
        return op.name not in CONTRACTING and not any(self.units.intersection(normal(a).atoms) for a in touched)

    def _site(self, call: Call) -> OpRecord | None:
        """Of a run whose path depends on data: the op on the same line of the same module."""
        return self._sites.get((call.name, call.where, self._modules.get(id(call.module), "")))

    def finish(self) -> None:
        """The model has returned: nothing of the recorded run may be left."""
        left = [op for op in self.graph.ops[self._at :] if not self._bystander(op)]
        if left and not self.graph.real:
            raise self._diverged("the model does without an op", left[0])

    def _diverged(self, what: str, record: OpRecord | None) -> TraceError:
        was = f"{record.name} of {record.module or 'the model'} ({record.where})" if record else "the end"
        return TraceError(
            f"the run on data takes another path than the traced one: {what} where the trace has {was}. Trace the model in "
            "eval mode, on example inputs of the same form as the data (dims, optional arguments, a batch of at least 2)."
        )
