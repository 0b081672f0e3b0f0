"""`cut`, `cut_` and `mask`: slicing as a plan says, and nothing else."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.cutting.check import check
from bough.cutting.copying import copy_modules
from bough.cutting.parameter_history import note
from bough.cutting.slicing import Slicer, formatted, like, plain, plainly
from bough.errors import PlanError
from bough.graph import module_of
from bough.planning.attributes import flatten, refresh
from bough.planning.plan import Plan
from bough.storage.tensors import memory
from bough.tracing.capture.attribute_numbers import rewrite, substituted
from bough.tracing.capture.caches import clear_memoized_methods
from bough.tracing.capture.execution import model_tensors
from bough.tracing.capture.run import uncollected
from bough.tracing.capture.wrapped import kept_by_reducer, traceable, unwrap
from bough.tracing.typing.layers import bypass, leave_out


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a new, smaller model; `model` stays as it was.

    Keeps mode, `requires_grad`, dtype, device, memory format, ties, parametrizations, hooks of modules and tensors, and
    what is set on modules and parameters, as `copy.deepcopy` does: hooks that are methods of the model are the copy's, hooks
    that are functions are shared with the model. Gradients are not copied. A wrapper (`torch.compile`, `DataParallel`,
    `DistributedDataParallel`, `AveragedModel`) comes back as the same wrapper around the cut module.

    Args:
        model: the one that was traced, or a copy of it with the same shapes; wrapped models are looked into.
        plan: as `plan` gives or `Plan.from_dict` reads it.

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
    check_arguments(cut, locals())
    with uncollected():
        inner = traceable(model)
        check(inner, plan)
        _agreed(plan)
        slicer = Slicer(plan)
        small, copies = copied(model, lambda name, tensor, _: slicer(name, tensor, fresh=True))
        finish(unwrap(small), plan)
        note(plan, unwrap(small), ((n, t, copies[id(t)]) for n, t, parameter, _ in model_tensors(inner) if parameter))
        return small


def cut_(model: nn.Module, plan: Plan) -> nn.Module:
    """Cut a model in place and return it. All or nothing; gradients are dropped.

    Each parameter and buffer stays the same object, so whoever holds it (an optimizer, another model) holds the cut one;
    `transfer_optimizer` carries an optimizer's state along. What only shares memory with one (a view, a detached tensor) keeps
    the old values. What memoized methods of its classes (`functools.lru_cache`) returned for the uncut model is forgotten.

    Args:
        model: the one that was traced, or a copy of it with the same shapes; wrapped models are looked into.
        plan: as `plan` gives or `Plan.from_dict` reads it.

    Raises:
        PlanError: the plan was made for another model, or a tensor can not be cut in place; nothing is changed.
        TraceError: as for `cut`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
        >>> bough.cut_(net, plan) is net, net[0].out_features
        (True, 4)
    """
    check_arguments(cut_, locals())
    if kept_by_reducer(model):
        raise PlanError(
            "cut_ can not cut inside DistributedDataParallel, whose buckets have the parameters' present sizes: call "
            "cut_(model.module, plan) and wrap the module again, or take the wrapped copy that cut(model, plan) gives"
        )
    inner = traceable(model)
    check(inner, plan)
    _agreed(plan)
    slicer = Slicer(plan)
    named = list(model_tensors(inner))
    with plainly():
        touched = [(n, t, parameter) for n, t, parameter, _ in named if n in plan.kept or any(s.name == n for s in plan.scales)]
        values = _changed(touched, lambda name, tensor, _: slicer(name, tensor, fresh=False))
        with substituted(inner, lambda _, n: n, only_on_error=True), _restored_on_error([t for _, t, _, _ in named]):
            for name, tensor, _, _ in named:
                if tensor.is_leaf:
                    tensor.grad = None
                if id(tensor) in values:
                    _put(name, tensor, values[id(tensor)])
            finish(inner, plan)
    clear_memoized_methods(inner)
    note(plan, inner, ((n, t, t) for n, t, parameter, _ in named if parameter))
    return model


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of full size in which everything that the plan removes is zero, and layers it leaves out pass through.

    Args:
        model: the one that was traced, or a copy of it with the same shapes; wrapped models are looked into.
        plan: as `plan` gives or `Plan.from_dict` reads it.

    Raises:
        PlanError, TraceError: as for `cut`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
        >>> masked = bough.mask(net, plan)
        >>> masked[0].weight.shape, int((masked[0].weight == 0).all(1).sum())
        (torch.Size([8, 4]), 4)
    """
    check_arguments(mask, locals())
    return masked(model, plan, lambda name, tensor, parameter: tensor.clone())


def masked(model: nn.Module, plan: Plan, values: _Change) -> nn.Module:
    """Return a masked copy of `model` whose tensors have the values that `values` makes (new ones, in any dtype)."""
    check(traceable(model), plan)

    def zeroed(name: str, tensor: Tensor, parameter: bool) -> Tensor:
        value = values(name, tensor, parameter)
        return zero_cut(name, value, plan) if parameter else value

    full, _ = copied(model, zeroed)
    flatten(full)
    for name in plan.left_out:
        bypass(unwrap(full).get_submodule(name))
    return full


def zero_cut(name: str, value: Tensor, plan: Plan) -> Tensor:
    """Write zeros, in place, where `plan` removes indices of the tensor called `name`, and return the tensor."""
    for dim, indices in plan.kept.get(name, {}).items():
        gone = torch.ones(value.shape[dim], dtype=torch.bool, device="cpu")
        gone[indices] = False
        value.index_fill_(dim, gone.nonzero().flatten().to(value.device), 0)
    return value


_Change = Callable[[str, Tensor, bool], Tensor]  # (name, values, is a parameter) -> new values


def _agreed(plan: Plan) -> None:
    if plan.rebuild:
        raise PlanError(
            "the model's own Python contradicts this plan, which was made with on_conflict='rebuild': use "
            "bough.rebuild(model, plan, example_inputs), or make a plan with on_conflict='freeze'"
        )


def _changed(named: Iterable[tuple[str, Tensor, bool]], change: _Change) -> dict[int, Tensor]:
    """The new values of each tensor (name, tensor, is a parameter), by its id; what shares memory goes on sharing it."""
    keyed = [(memory(t), name, t, parameter) for name, t, parameter in named]
    of_parameters = {key for key, _, _, parameter in keyed if parameter}
    made: dict[tuple[Hashable, ...], Tensor] = {}
    for key, name, tensor, _ in keyed:
        if key not in made:
            made[key] = formatted(tensor, change(name, plain(tensor), key in of_parameters))
    return {id(t): made[key] for key, _, t, _ in keyed}


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose tensors are ordinary ones, also where they were made in inference mode."""
    return copied(model, lambda name, tensor, parameter: tensor.clone())[0]


def copied(model: nn.Module, change: _Change) -> tuple[nn.Module, dict[int, Tensor]]:
    """A copy of `model` (with its wrappers) whose tensors are what `change` makes of them, and the new by the old's id."""
    named = [(n, t, parameter) for n, t, parameter, _ in model_tensors(unwrap(model))]
    with plainly():
        values = _changed(named, change)
        copies = {id(t): like(t, values[id(t)]) for _, t, _ in named}
    try:
        with uncollected():
            memo: dict[int, Any] = {**computed_weights(model), **copies}
            copy_modules(model, memo)
            new = copy.deepcopy(model, memo)
        for _, old, _ in named:
            _carry_attributes(old, copies[id(old)], memo)
            _carry_slots(old, memo)
        for module in model.modules():
            _carry_slots(module, memo)
            if id(module) in memo and memo[id(module)].training != module.training:  # its class copies by its constructor
                memo[id(module)].training = module.training
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__} can not be copied: {type(error).__name__}: {error}. Cut it in place with bough.cut_, or "
            "take out what can not be copied"
        ) from error
    return new, copies


def computed_weights(model: nn.Module) -> dict[int, Any]:
    """Return {id: detached tensor} of parametrized weights that recurrent layers hold, which deepcopy refuses to copy."""
    layers = (m for m in model.modules() if isinstance(m, nn.RNNBase))
    return {id(t): t.detach() for m in layers for t in m._flat_weights if isinstance(t, Tensor) and not t.is_leaf}


def _carry_slots(holder: nn.Module | Tensor, memo: dict[int, Any]) -> None:
    """Copy what is stored in `__slots__`, which copying a module loses."""
    for kind in type(holder).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(holder, name):
                setattr(memo[id(holder)], name, copy.deepcopy(getattr(holder, name), memo))


def _carry_attributes(old: Tensor, new: Tensor, memo: dict[int, Any]) -> None:
    """Copies what was set on a tensor, its hooks included."""
    new.__dict__.update({k: copy.deepcopy(v, memo) for k, v in old.__dict__.items()})
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if old.is_leaf and old.requires_grad and getattr(old, hooks):
            setattr(new, hooks, OrderedDict(copy.deepcopy(getattr(old, hooks), memo)))


@contextmanager
def _restored_on_error(tensors: list[Tensor]) -> Iterator[None]:
    """Puts back each tensor's values and gradient where what is done inside fails."""
    before = [(t, t.data, t.grad if t.is_leaf else None) for t in tensors]
    try:
        yield
    except BaseException:
        for tensor, data, grad in before:
            if tensor.shape != data.shape or tensor.data_ptr() != data.data_ptr():
                _set_data(tensor, data)
            if tensor.is_leaf:
                tensor.grad = grad
        raise


def _put(name: str, tensor: Tensor, value: Tensor) -> None:
    try:
        _set_data(tensor, value)
    except (RuntimeError, TypeError) as error:
        raise PlanError(
            f"{name} ({type(tensor).__name__}) can not be cut in place: {error}. Nothing was changed; use bough.cut, which "
            "makes a new model"
        ) from error


def _set_data(tensor: Tensor, value: Tensor) -> None:
    """Gives a tensor other data of another shape.

    Where an old graph is still alive, the tensor's accumulator of gradients is, too, and expects the old shape; torch
    makes a new one where the dtype changes, so the data goes through another dtype.
    """
    if tensor.is_inference():  # it takes only what was made as it was
        with torch.inference_mode():
            tensor.data = value if value.is_inference() else value.clone()
        return
    if tensor.is_leaf and tensor.requires_grad:
        other = torch.float32 if tensor.dtype != torch.float32 else torch.float64
        tensor.grad = None
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value


def finish(model: nn.Module, plan: Plan) -> None:
    """Set what a plan says of a model beside its tensors: the integers of its modules, and the layers that are left out."""
    rewrite(model, plan.attributes, plan.sequences)
    owners = {module_of(name) for name in plan.kept}
    for module in {*owners, *(o.rpartition(".")[0] for o in owners)}:
        refresh(model.get_submodule(module))
    flatten(model)
    leave_out(model, [(name, *replacement) for name, replacement in plan.left_out.items()])
