"""The tensors inside nested values: containers, dataclasses, and objects with attributes or slots.

The inputs and the outputs of a model are walked in the same way, by the one function here. Objects that may hold tensors
out of sight (a generator, a future) are reported, so that a caller can refuse them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import gc
import inspect
import types
import weakref
from collections import deque
from collections.abc import Collection, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import TraceError
from bough.torch_internals import FAKE_TENSORS

_WITHOUT_TENSORS = (
    type(None), bool, str, bytes, bytearray, enum.Enum, range, slice, type, types.ModuleType, nn.Module,
    types.BuiltinFunctionType, weakref.ref, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.Generator,
)  # fmt: skip
_SEQUENCES = (tuple, list, set, frozenset, deque, KeysView, ValuesView, ItemsView)
_DTYPES = {float: torch.float64, complex: torch.complex128}
_HEAP_TYPE = 1 << 9  # of `type.__flags__`: a class that Python code defined


def tensors_within(value: Any) -> Iterator[Tensor]:
    """Yield each tensor in `value` once; modules and what cannot be looked into are passed over."""
    for _, leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf


class Successive(list[Any]):
    """What several calls in a row returned."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a model returned, looked into: what it noted in an object that it holds may be gone when its run is over.

    Attributes:
        kind: the type of the returned value, by name.
        leaves: (path, tensor or object that cannot be looked into) of each leaf.
        scalars: (path, number) of the numbers outside of tensors.
    """

    kind: str
    leaves: tuple[tuple[str, Any], ...]
    scalars: tuple[tuple[str, Number], ...] = ()

    @staticmethod
    def of(value: Any, parameters: Collection[str] = ()) -> Returned:
        """Look into a value that a model returned.

        Args:
            value: what the model returned.
            parameters: names of the parameters of the model's `forward`. A plain object that is returned under one of these
                names is state for the model's next call, such as a cache of keys and values, and no output.
        """
        state = {step for name in parameters for step in (f".{name}", f"[{name!r}]")}
        if isinstance(value, Successive):
            state = {f"[{i}]{step}" for i in range(len(value)) for step in state}
        found = list(_leaves(value, state))
        scalars = tuple(x for x in found if isinstance(x[1], Number))
        return Returned(_kind(value), tuple(x for x in found if not isinstance(x[1], Number)), scalars)

    def compared(self) -> dict[str, Tensor]:
        """Return what `verify` compares, by path: the tensors; of a value without tensors, its numbers as tensors."""
        return self.tensors() or {path: torch.tensor(n, dtype=_DTYPES.get(type(n))) for path, n in self.scalars}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by path, as `output_tensors` does, which says what it raises."""
        found: dict[str, Tensor] = {}
        for path, leaf in self.leaves:
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


def forward_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a model's `forward`; none if it is not written in Python."""
    try:
        return tuple(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return ()


def state_names(model: nn.Module, method: Any) -> tuple[str, ...]:
    """Return the names under which a method of a model may return state for its next call: the parameters of both."""
    if method is model:
        return forward_parameters(model)
    try:
        return (*forward_parameters(model), *inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return forward_parameters(model)


def output_tensors(value: Any, parameters: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the tensors that a model returns, by their paths in what it returns; arrays of numpy as tensors.

    Args:
        value: what the model returned: a tensor, or containers and objects around tensors, nested.
        parameters: names of the parameters of the model's `forward`, under which it returns state for its next call.

    Raises:
        TraceError: the output holds an object that cannot be looked into, such as a generator.

    Example:
        >>> import torch, types
        >>> output = types.SimpleNamespace(logits=torch.zeros(2), parts=[torch.zeros(3)])
        >>> {path: tuple(t.shape) for path, t in output_tensors({"a": output}).items()}
        {"['a'].logits": (2,), "['a'].parts[0]": (3,)}
    """
    return Returned.of(value, parameters).tensors()


_NOTE = "._bough"  # what the recorder notes on the tensors of its own run


def _leaves(value: Any, state: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for each tensor, number, and object that cannot be looked into; each object once.

    Plain objects at a path in `state` are passed over.
    """
    seen: dict[int, Any] = {}  # the objects too: an id is free again once its object is gone
    waiting = [("", value)]
    while waiting:
        path, here = waiting.pop()
        if isinstance(here, Number) and not isinstance(here, bool):
            yield path, here
            continue
        if id(here) in seen or isinstance(here, _WITHOUT_TENSORS):
            continue
        seen[id(here)] = here
        if isinstance(here, Tensor):
            yield path, here
            fake = type(here).__module__ == FAKE_TENSORS
            children: list[tuple[str, Any]] | None = [] if fake else [c for c in _attributes(here) if c[0] != _NOTE]
        else:
            children = [] if path in state and _is_plain(here) else _children(here)
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


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (Mapping, *_SEQUENCES)) and not dataclasses.is_dataclass(value)


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
