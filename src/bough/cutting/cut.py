"""`cut`, `cut_` and `mask`: slicing as a plan says, and nothing else."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bough.cutting.metadata import refresh
from bough.cutting.passages import note
from bough.errors import PlanError
from bough.planning.plan import Plan
from bough.tracing.execution import held_tensors
from bough.tracing.held import read, rewrite
from bough.tracing.layers import bypass, leave_out
from bough.tracing.trace import fingerprint
from bough.tracing.wrapped import held_by_reducer, traceable, unwrap


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """A new, smaller model; `model` stays as it was.

    Keeps mode, `requires_grad`, dtype, device, memory format, ties, parametrizations, hooks of modules and tensors, and
    what is set on modules and parameters. Gradients are not copied. A wrapper (`torch.compile`, `DataParallel`,
    `DistributedDataParallel`, `AveragedModel`) comes back as the same wrapper around the cut module.

    Raises:
        PlanError: the plan was made for another model, or the model can not be copied; nothing is changed.
        TraceError: the model holds what can not be sliced (sharded, quantized or scripted parts).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> bough.cut(net, plan)[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    inner = traceable(model)
    check(inner, plan)
    _agreed(plan)
    slicer = _Slicer(plan)
    small, copies = _copied(model, lambda name, tensor, _: slicer(name, tensor, fresh=True))
    _finish(unwrap(small), plan)
    note(plan, unwrap(small), ((n, t, copies[id(t)]) for n, t, parameter, _ in held_tensors(inner) if parameter))
    return small


def cut_(model: nn.Module, plan: Plan) -> nn.Module:
    """Cuts in place and returns the model. All or nothing; gradients are dropped.

    Each parameter and buffer stays the same object, so whoever holds it (an optimizer, another model) holds the cut one;
    `transfer_optimizer` carries an optimizer's state along.

    Raises:
        PlanError: the plan was made for another model, or a tensor can not be cut in place; nothing is changed.
        TraceError: as for `cut`.
    """
    if held_by_reducer(model):
        raise PlanError(
            "cut_ can not cut inside DistributedDataParallel, whose buckets have the parameters' present sizes: call "
            "cut_(model.module, plan) and wrap the module again, or take the wrapped copy that cut(model, plan) gives"
        )
    inner = traceable(model)
    check(inner, plan)
    _agreed(plan)
    slicer = _Slicer(plan)
    held = list(held_tensors(inner))
    with _plainly():
        values = [(t, n, _formatted(t, slicer(n, _plain(t), fresh=False))) for n, t, _, _ in held if _touched(n, plan)]
        done: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for tensor, name, value in values:
            done.append((tensor, tensor.data, tensor.grad if tensor.is_leaf else None))
            try:
                _put(tensor, value, None)
            except (RuntimeError, TypeError) as error:
                for earlier, data, grad in done:
                    _put(earlier, data, grad)
                raise PlanError(
                    f"{name} ({type(tensor).__name__}) can not be cut in place: {error}. Nothing was changed; use bough.cut, "
                    "which makes a new model"
                ) from error
    _finish(inner, plan)
    note(plan, inner, ((n, t, t) for n, t, parameter, _ in held if parameter))
    return model


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of full size in which everything that the plan removes is zero, and layers it leaves out pass through.

    Raises:
        PlanError, TraceError: as for `cut`.
    """
    check(traceable(model), plan)

    def masked(name: str, tensor: Tensor, parameter: bool) -> Tensor:
        value = tensor.clone()
        for dim, indices in plan.kept.get(name, {}).items() if parameter else ():
            gone = torch.ones(value.shape[dim], dtype=torch.bool, device="cpu")
            gone[indices] = False
            value.index_fill_(dim, gone.nonzero().flatten().to(value.device), 0)
        return value

    copied, _ = _copied(model, masked)
    for name in plan.left_out:
        bypass(unwrap(copied).get_submodule(name))
    return copied


def check(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError where the plan was not made for a model like this one."""
    found = fingerprint(model)
    held = {n: list(t.shape) for n, t, _, _ in held_tensors(model)}
    for name, shape in plan.original_shapes.items():
        if held.get(name) != shape:
            has = f"has shape {held[name]} here" if name in held else "does not exist here"
            raise PlanError(
                f"this plan was made for another model: {name} {has}, and had shape {shape} where the plan was made"
            )
    if found != plan.fingerprint:
        raise PlanError(
            f"this plan was made for another model: {type(model).__name__} has fingerprint {found}, "
            f"the plan's is {plan.fingerprint}"
        )
    modules = {n for n, _ in model.named_modules()}
    for name in plan.left_out.keys() - modules:
        raise PlanError(f"this plan was made for another model: it leaves out {name}, which does not exist here")
    for key in (*plan.attributes, *plan.sequences):
        try:
            read(model, tuple(key.split(":")))
        except (AttributeError, KeyError, IndexError, ValueError):
            raise PlanError(f"this plan was made for another model: it sets {key}, which does not exist here") from None


def _agreed(plan: Plan) -> None:
    if plan.rebuild:
        raise PlanError(
            "the model's own Python contradicts this plan, which was made with on_conflict='rebuild': use "
            "bough.rebuild(model, plan, example_inputs), or make a plan with on_conflict='freeze'"
        )


def _touched(name: str, plan: Plan) -> bool:
    return name in plan.kept or any(s.name == name for s in plan.scales)


class _Slicer:
    """Makes the tensors a plan wants; where several dims are cut, what lies between is kept in one reused buffer."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._indices: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, name: str, value: Tensor, *, fresh: bool) -> Tensor:
        """The tensor `name` of value `value` as the plan wants it; a copy where `fresh`."""
        scales = [s for s in self.plan.scales if s.name == name]
        dims = self.plan.kept.get(name, {})
        if scales:
            value = value.clone()
            for s in scales:
                index = torch.tensor(s.indices, device=value.device)
                part = value.index_select(s.dim, index)
                value.index_copy_(s.dim, index, (part.double() * s.factor).to(value.dtype))
        elif not dims:
            return value.clone() if fresh else value
        order = sorted(dims, key=lambda d: len(dims[d]) / value.shape[d])
        for place, dim in enumerate(order):
            index = self._index(dims[dim], value.device)
            out = None if place == len(order) - 1 else self._buffer(value, dim, len(index), place)
            value = torch.index_select(value, dim, index, out=out)
        return value

    def _index(self, indices: list[int], device: torch.device) -> Tensor:
        key = (id(indices), device)  # the plan's lists live as long as this
        if key not in self._indices:
            self._indices[key] = torch.tensor(indices, device=device)
        return self._indices[key]

    def _buffer(self, value: Tensor, dim: int, kept: int, place: int) -> Tensor | None:
        if place or value.device.type == "meta":
            return None
        shape = [kept if d == dim else n for d, n in enumerate(value.shape)]
        size = torch.Size(shape).numel()
        key = (value.dtype, value.device)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = torch.empty(size, dtype=value.dtype, device=value.device)
        return self._buffers[key][:size].view(shape)


def _copied(model: nn.Module, change: Callable[[str, Tensor, bool], Tensor]) -> tuple[nn.Module, dict[int, Tensor]]:
    """A copy of `model` (with its wrappers) whose held tensors are what `change` makes of them, and the new by the old's id."""
    held = list(held_tensors(unwrap(model)))
    with _plainly():
        copies = {id(t): _like(t, _formatted(t, change(n, _plain(t), parameter))) for n, t, parameter, _ in held}
    memo: dict[int, Any] = dict(copies)
    try:
        copied = copy.deepcopy(model, memo)
        for _, old, _, _ in held:
            _carry_attributes(old, copies[id(old)], memo)
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__} can not be copied: {type(error).__name__}: {error}. Cut it in place with bough.cut_, or "
            "take out what can not be copied"
        ) from error
    return copied, copies


@contextmanager
def _plainly() -> Iterator[None]:
    """What is made inside is ordinary tensors without history, also where the caller is in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _plain(tensor: Tensor) -> Tensor:
    """The values of a tensor, without its class and history."""
    return tensor.detach().as_subclass(Tensor)


def _formatted(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the memory format of `old`."""
    for dims, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if old.ndim == dims and old.is_contiguous(memory_format=form) and not old.is_contiguous():
            return new.contiguous(memory_format=form)
    return new


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as a leaf of the class of `old`."""
    return Tensor._make_subclass(type(old), new, old.requires_grad and old.is_leaf)


def _carry_attributes(old: Tensor, new: Tensor, memo: dict[int, Any]) -> None:
    """Copies what was set on a tensor, its hooks included."""
    new.__dict__.update({k: copy.deepcopy(v, memo) for k, v in old.__dict__.items()})
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if old.is_leaf and old.requires_grad and getattr(old, hooks):
            setattr(new, hooks, OrderedDict(copy.deepcopy(getattr(old, hooks), memo)))


def _put(tensor: Tensor, value: Tensor, grad: Tensor | None) -> None:
    """Gives a tensor other data of another shape.

    Where an old graph is still alive, the tensor's accumulator of gradients is, too, and expects the old shape; torch
    makes a new one where the dtype changes, so the data goes through another dtype.
    """
    if tensor.is_leaf:
        tensor.grad = None
        if tensor.requires_grad:
            other = torch.float32 if tensor.dtype != torch.float32 else torch.float64
            tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value
    if grad is not None:
        tensor.grad = grad


def _finish(model: nn.Module, plan: Plan) -> None:
    rewrite(model, plan.attributes, plan.sequences)
    owners = {name.rpartition(".")[0] for name in plan.kept}
    for module in {*owners, *(o.rpartition(".")[0] for o in owners)}:
        refresh(model.get_submodule(module))
    leave_out(model, [(name, *how) for name, how in plan.left_out.items()])
