"""The integers a model holds: put `TracedInt`s, or new values, in their place for a while, and put all back.

Only values in instance dictionaries are touched (never a property or a class attribute), and only from 2 upwards: an
axis of size 1 has no unit to lose.
"""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bough.tracing.capture.provenance import Path, path_of

MACHINERY = frozenset(nn.Module().__dict__)
_DEPTH = 3

DICTS = (dict, OrderedDict, defaultdict)
Holder = Any
"""A dict, list, set or deque, changed in place."""

_OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, torch.Tensor, nn.Module, str, bytes)


@contextmanager
def substituted(model: nn.Module, change: Callable[[Path, int], int], *, only_on_error: bool = False) -> Iterator[None]:
    """While inside, every integer of a module at a path is what `change(path, value)` says; afterwards, all is as before.

    With `only_on_error`, what is done inside stays, unless it fails.

    Restores each module's whole instance dictionary, so what the model's forward sets on itself is undone too.
    """
    changes = _Changes(change)
    failed = True
    try:
        changes.make(model)
        yield
        failed = False
    finally:
        if failed or not only_on_error:
            changes.undo()


@contextmanager
def state_restored(model: nn.Module) -> Iterator[None]:
    """Put back, afterwards, what a model's code has left in the instance dictionaries of its modules, such as caches.

    Parameters and buffers stay as the code has set them.
    """
    changes = _Changes(lambda path, value: value)
    try:
        changes.make(model, frozenset())
        yield
    finally:
        changes.undo()


class _Changes:
    """What was changed in instance dictionaries. No closures: one that calls itself would hold all weights until a collection
    of cycles."""

    def __init__(self, change: Callable[[Path, int], int]) -> None:
        self.change = change
        self.before: list[tuple[Holder, Holder]] = []
        self.seen: set[int] = set()

    def make(self, model: nn.Module, machinery: frozenset[str] = MACHINERY) -> None:
        for name, module in model.named_modules():
            for inner in machinery & module.__dict__.keys():  # parameters, buffers, modules, hooks of all kinds
                if isinstance(module.__dict__[inner], dict):
                    self.before.append((module.__dict__[inner], dict(module.__dict__[inner])))
            self._visit(module.__dict__, (name,), 0, MACHINERY)

    def undo(self) -> None:
        for holder, before in reversed(self.before):
            put(holder, before)

    def _visit(self, holder: dict[str, Any], path: Path, depth: int, skip: frozenset[str] = frozenset()) -> None:
        self.before.append((holder, dict(holder)))
        for key, value in list(holder.items()):
            if key not in skip:
                new = self._replaced(value, (*path, str(key)), depth)
                if new is not value:
                    holder[key] = new

    def _replaced(self, value: Any, path: Path, depth: int) -> Any:
        kind = type(value)
        if kind is int:
            return self.change(path, value) if value > 1 else value
        if kind in (bool, float, str, type(None)) or opaque(value) or depth == _DEPTH:
            return value
        if is_sequence(kind):
            if kind is list:
                self.before.append((value, list(value)))
            items = [self._replaced(v, (*path, str(i)), depth + 1) for i, v in enumerate(value)]
            return _like(value, items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        if id(value) in self.seen:
            return value
        self.seen.add(id(value))
        if kind in DICTS:
            if all(isinstance(k, str) for k in value):
                self._visit(value, path, depth + 1)
            else:
                self.before.append((value, dict(value)))
        elif kind in (set, deque):
            self.before.append((value, kind(value)))
        elif isinstance(getattr(value, "__dict__", None), dict) and not kind.__module__.startswith("torch."):
            self._visit(value.__dict__, path, depth + 1)
        return value


def opaque(value: Any) -> bool:
    """Whether a value is not looked into: a module, a tensor, a function, a class, a string."""
    return isinstance(value, _OPAQUE)


def is_sequence(kind: type) -> bool:
    """Whether objects of this type can be made again with other items by `_like`: lists, tuples, named tuples, shapes."""
    return kind in (tuple, list, torch.Size) or (issubclass(kind, tuple) and hasattr(kind, "_make"))


def _like(sequence: Any, items: Iterable[Any]) -> Any:
    """Return a sequence of the same type with other items."""
    kind = type(sequence)
    return kind._make(items) if hasattr(kind, "_make") else kind(items)


def notes(model: nn.Module) -> list[Holder]:
    """All that a forward may note something in: what each module has, its buffers, and dicts, lists and objects among these."""
    changes = _Changes(lambda path, n: n)
    changes.make(model, frozenset({"_buffers"}))
    return [holder for holder, _ in changes.before]


def put(holder: Holder, contents: Holder) -> None:
    """Makes a dict, list, set or deque hold what another does, where it does not yet."""
    if not holder and not contents:
        return
    if isinstance(holder, (list, deque)):
        if len(holder) != len(contents) or not all(map(operator.is_, holder, contents)):
            holder.clear()
            holder.extend(contents)
    elif isinstance(holder, set):
        if {id(v) for v in holder} != {id(v) for v in contents}:
            holder.clear()
            holder.update(contents)
    elif list(holder) != list(contents) or not all(map(operator.is_, holder.values(), contents.values())):
        holder.clear()
        holder.update(contents)


def attribute_numbers(module: nn.Module, inner: bool = True) -> Iterator[tuple[Path, Any]]:
    """(path, value) of each integer, and of each list or tuple, that `module` (and, if `inner`, its modules) hold."""
    seen: set[int] = set()
    for name, part in module.named_modules() if inner else (("", module),):
        for key, value in part.__dict__.items():
            if key not in MACHINERY:
                yield from _values_within(value, (name, key), 0, seen)


def _values_within(value: Any, path: Path, depth: int, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """Yield the numbers and lists of one value at `path`; `seen` are the ids of the objects that were gone through."""
    kind = type(value)
    if kind is int:
        yield path, value
    elif is_sequence(kind) and depth < _DEPTH:
        if kind in (tuple, list):
            yield path, value
        for i, v in enumerate(value):
            yield from _values_within(v, (*path, str(i)), depth + 1, seen)
    elif kind in (bool, float, str, type(None)) or opaque(value) or depth >= _DEPTH or id(value) in seen:
        return
    elif kind in DICTS or (isinstance(getattr(value, "__dict__", None), dict) and not kind.__module__.startswith("torch.")):
        seen.add(id(value))
        for k, v in (value if kind in DICTS else value.__dict__).items():
            yield from _values_within(v, (*path, str(k)), depth + 1, seen)


def read(model: nn.Module, path: Path) -> Any:
    """Return the value at `path`."""
    value: Any = model.get_submodule(path[0])
    for key in path[1:]:
        value = _step(value, key)
    return value


def holds(model: nn.Module, path: Path) -> bool:
    """Return whether there is a value at `path`."""
    try:
        read(model, path)
    except (AttributeError, KeyError, IndexError, ValueError):
        return False
    return True


def write(model: nn.Module, path: Path, new: Any) -> None:
    """Set the value at `path`; tuples and lists on the way are made again."""
    holders: list[Any] = [model.get_submodule(path[0])]
    for key in path[1:-1]:
        holders.append(_step(holders[-1], key))
    value: Any = new
    for holder, key in zip(reversed(holders), reversed(path[1:]), strict=True):
        if isinstance(holder, (tuple, list)):
            value = _like(holder, [value if i == int(key) else v for i, v in enumerate(holder)])
            continue
        if isinstance(holder, dict):
            holder[key] = value
        else:
            holder.__dict__[key] = value
        return


def rewrite(model: nn.Module, values: Mapping[str, float], sequences: Mapping[str, list[int]]) -> None:
    """Set numbers by their paths ("module:attribute:key"), and keep some items of lists."""
    for key, value in values.items():
        write(model, path_of(key), value)
    for key, stay in sequences.items():
        path = path_of(key)
        items = read(model, path)
        write(model, path, type(items)(items[i] for i in stay))


def _step(value: Any, key: str) -> Any:
    if isinstance(value, (tuple, list)):
        return value[int(key)]
    return value[key] if isinstance(value, dict) else value.__dict__[key]
