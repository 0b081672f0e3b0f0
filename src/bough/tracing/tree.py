"""The tensors inside nested values: containers, dataclasses, and objects with attributes or slots.

The inputs and the outputs of a model are walked in the same way, by the one function here. Objects that may hold tensors
out of sight (a generator, a future) are reported, so that a caller can refuse them.
"""

from __future__ import annotations

import enum
import functools
import gc
import types
import weakref
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import TraceError

_WITHOUT_TENSORS = (
    type(None), Number, str, bytes, bytearray, enum.Enum, range, slice, type, types.ModuleType, nn.Module,
    types.BuiltinFunctionType, weakref.ref, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.Generator,
)  # fmt: skip
_SEQUENCES = (tuple, list, set, frozenset, deque, KeysView, ValuesView, ItemsView)
_HEAP_TYPE = 1 << 9  # of `type.__flags__`: a class that Python code defined


def tensors_within(value: Any) -> Iterator[Tensor]:
    """Yield each tensor in `value` once; modules and what cannot be looked into are passed over."""
    for _, leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf


def output_tensors(value: Any) -> dict[str, Tensor]:
    """Return the tensors that a model returns, by their paths in what it returns; arrays of numpy as tensors.

    Args:
        value: what the model returned: a tensor, or containers and objects around tensors, nested.

    Raises:
        TraceError: the output holds an object that cannot be looked into, such as a generator.

    Example:
        >>> import torch, types
        >>> held = types.SimpleNamespace(logits=torch.zeros(2), parts=[torch.zeros(3)])
        >>> {path: tuple(t.shape) for path, t in output_tensors({"a": held}).items()}
        {"['a'].logits": (2,), "['a'].parts[0]": (3,)}
    """
    found: dict[str, Tensor] = {}
    for path, leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            found[path] = leaf
        elif (array := _array(leaf)) is not None:
            found[path] = array
        else:
            place = f" at output{path}" if path else ""
            raise TraceError(
                f"the model's output holds a {_kind(leaf)}{place}, in which tensors cannot be found: return tensors, "
                "or dicts, tuples, dataclasses or plain objects that hold them"
            )
    return found


def holds_numbers(value: Any) -> bool:
    """Whether numbers outside of tensors, or arrays of numpy, are in `value`."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if id(here) in seen or isinstance(here, (bool, Tensor)):
            continue
        if isinstance(here, Number) or _is_array(here):
            return True
        seen[id(here)] = here
        if not isinstance(here, _WITHOUT_TENSORS):
            waiting += [child for _, child in _children(here) or ()]
    return False


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for each tensor, and for each object that cannot be looked into; each object once."""
    seen: dict[int, Any] = {}  # the objects too: an id is free again once its object is gone
    waiting = [("", value)]
    while waiting:
        path, here = waiting.pop()
        if id(here) in seen or isinstance(here, _WITHOUT_TENSORS):
            continue
        seen[id(here)] = here
        if isinstance(here, Tensor):
            yield path, here
            children: list[tuple[str, Any]] | None = _attributes(here)
        else:
            children = _children(here)
        if children is None:
            if gc.is_tracked(here) or _is_array(here):  # what Python does not track refers to no other object
                yield path, here
            continue
        waiting.extend((path + step, child) for step, child in reversed(children))


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """Return what a value holds, each with its step of the path; None if the value cannot be looked into."""
    if isinstance(value, Mapping):
        return [*((f"[{key!r}]", child) for key, child in value.items()), *_attributes(value)]
    if isinstance(value, _SEQUENCES):
        names = getattr(value, "_fields", None)
        steps = [f".{n}" for n in names] if isinstance(names, tuple) else [f"[{i}]" for i in range(len(value))]
        return [*zip(steps, value, strict=False), *_attributes(value)]
    if isinstance(value, types.FunctionType):
        return [
            (".__closure__", value.__closure__),
            (".__defaults__", value.__defaults__),
            (".__kwdefaults__", value.__kwdefaults__),
        ]
    if isinstance(value, types.CellType):
        return [] if value == types.CellType() else [(".cell_contents", value.cell_contents)]
    if isinstance(value, types.MethodType):
        return [(".__self__", value.__self__), (".__func__", value.__func__)]
    if isinstance(value, functools.partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    return _attributes(value) if hasattr(value, "__dict__") or _slotted(type(value)) else None


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """Return the instance attributes and the slots of an object."""
    own = getattr(value, "__dict__", None)
    found = dict(own) if isinstance(own, dict) else {}
    for kind in _slotted(type(value)):
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found[name] = member.__get__(value)
                except AttributeError:  # a slot that is not set
                    continue
    return [(f".{name}", child) for name, child in found.items()]


def _slotted(kind: type) -> list[type]:
    return [c for c in kind.__mro__ if c.__flags__ & _HEAP_TYPE and "__slots__" in vars(c)]


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__")


def _array(value: Any) -> Tensor | None:
    """Return an array of numpy as a tensor; None for an array of objects or any other thing."""
    if not hasattr(value, "__array_interface__"):
        return None
    import numpy as np

    values = np.array(value)
    return torch.from_numpy(values) if values.dtype.kind in "biufc" else None


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
