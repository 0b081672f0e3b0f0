"""Batches of data: their samples, and the parts that a traced model takes as inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import PlanError
from bough.graph import Graph
from bough.tracing.capture.tree import tensors_within


def traced_inputs(graph: Graph, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs): the first call's arguments, with the parts of a batch in the place of their tensors.

    From a tuple or list, the first parts are taken, in the order of the arguments, so labels at the end are left out. From a
    mapping, the entries with the names of the arguments. An argument without a tensor, such as `task="a"`, is as it was
    traced, unless the batch has another one in its place. Tensors are copied to the model's device.

    Raises:
        PlanError: the batch lacks a part; the message names the part and lists what the batch has.
    """
    call, device = graph.call, parameter_device(graph.model)
    names = [*_parameters(graph, len(call.args)), *call.kwargs]
    values = [*call.args, *call.kwargs.values()]
    if isinstance(batch, Mapping):
        missing = [n for n, v in zip(names, values, strict=True) if n not in batch and has_tensor(v)]
        if missing:
            raise PlanError(
                f"a batch lacks {missing[0]!r}, with which the model was traced; it has {', '.join(map(str, batch))}"
            )
        inputs = [batch.get(n, v) for n, v in zip(names, values, strict=True)]
    else:
        parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
        inputs = []
        for i, value in enumerate(values):
            if has_tensor(value) and not parts:
                needed = i + sum(map(has_tensor, values[i:]))
                raise PlanError(f"a batch has {i} parts, and the model was traced with {needed}: give Data(forward=...)")
            taken = parts and has_tensor(value) in (True, has_tensor(parts[0]))
            inputs.append(parts.pop(0) if taken else value)
    inputs = [copy_to_device(v, device) for v in inputs]
    n = len(call.args)
    return tuple(inputs[:n]), dict(zip(call.kwargs, inputs[n:], strict=True))


def traced_batch(graph: Graph) -> Any:
    """Return the example inputs of the first call as a batch, from which `traced_inputs` gives them again."""
    call = graph.call
    if not call.args:
        return dict(call.kwargs)
    parts = [v for v in (*call.args, *call.kwargs.values()) if has_tensor(v)]
    return parts[0] if len(parts) == 1 else tuple(parts)


def has_tensor(value: Any) -> bool:
    """Whether a tensor is in a value."""
    return next(tensors_within(value), None) is not None


def _parameters(graph: Graph, n: int) -> list[str]:
    """Return the names of the first `n` parameters of the method that is called; of those without a name, their numbers."""
    method = graph.call.bound(graph.model)
    try:
        names = list(inspect.signature(graph.model.forward if method is graph.model else method).parameters)[:n]
    except (TypeError, ValueError):
        names = []
    return [*names, *map(str, range(len(names), n))]


def select_inputs(model: nn.Module, batch: Any, n: int, names: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs): the parts of a batch for the first `n` arguments of a model and for the arguments `names`.

    From a tuple or list, the first parts are taken, so labels at the end are left out. From a mapping, the entries with these
    names, or with the names of the first arguments of the model's forward. Tensors are copied to the model's device.

    Raises:
        PlanError: the batch lacks a part; the message names the part and lists what the batch has.
    """
    device = parameter_device(model)
    if isinstance(batch, Mapping):
        positional = [] if not n else list(inspect.signature(model.forward).parameters)[:n]
        missing = [k for k in (*positional, *names) if k not in batch]
        if missing:
            raise PlanError(
                f"a batch lacks {missing[0]!r}, with which the model was traced; it has {', '.join(map(str, batch))}"
            )
        args = tuple(copy_to_device(batch[k], device) for k in positional)
        return args, {k: copy_to_device(batch[k], device) for k in names}
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) < n + len(names):
        raise PlanError(
            f"a batch of {len(parts)} parts for a model that was traced with {n + len(names)}: give Data(forward=...)"
        )
    inputs = tuple(copy_to_device(p, device) for p in parts)
    return inputs[:n], dict(zip(names, inputs[n:], strict=False))


def parameter_device(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU if the model has no parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def copy_to_device(value: Any, device: torch.device) -> Any:
    """Return `value` with copies of its tensors on `device`; tuples, lists and mappings are traversed.

    Tensors that are on the device already are copied too, because a model may change its inputs in place.
    """
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if type(value) in (tuple, list):
        return type(value)(copy_to_device(v, device) for v in value)
    return {k: copy_to_device(v, device) for k, v in value.items()} if isinstance(value, Mapping) else value


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch: the first dim of its first tensor that has dims.

    Raises:
        PlanError: the batch has no such tensor, or the tensor is empty.
    """
    first = next((t for t in tensors_within(batch) if t.dim()), None)
    if first is None or not len(first):
        raise PlanError(f"a batch ({type(batch).__name__}) holds no samples: its first tensor's first dim must number them")
    return len(first)


def split_samples(batch: Any) -> Iterator[Any]:
    """Yield each sample of a batch as a batch of one.

    Raises:
        PlanError: the batch holds no samples.
    """
    n = batch_size(batch)
    for i in range(n):
        yield _sample(batch, i, n)


def _sample(value: Any, i: int, n: int) -> Any:
    """Return sample `i` of the `n` in `value`; tensors whose first dim is not `n` are shared by all samples."""
    if isinstance(value, Tensor):
        return value[i : i + 1] if value.dim() and len(value) == n else value
    if isinstance(value, Mapping):
        return type(value)({k: _sample(v, i, n) for k, v in value.items()})  # type: ignore[call-arg]
    if type(value) in (tuple, list):
        return type(value)(_sample(v, i, n) for v in value)
    return type(value)(*(_sample(v, i, n) for v in value)) if isinstance(value, tuple) else value
