"""What a model's code keeps between runs outside the modules: memoized functions, globals, class attributes, closures.

A recorded run works on tensors without values and on traced integers. Neither may be found by a later run, and a result
that a function remembers of an earlier run hides how the model makes it. So while a model is recorded, memoized functions
work on empty caches, and afterwards what else the code wrote is put back: every cache has its old contents.

Which places these are follows from the code: globals, class attributes, cells of closures, defaults and attributes of the
functions that can be reached from the `forward` of the model's modules by the names that each function uses. Code of torch,
numpy and the standard library is not followed.
"""

from __future__ import annotations

import functools
import logging
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bough.tracing.capture.attribute_numbers import DICTS, MACHINERY, put
from bough.tracing.capture.provenance import TracedInt
from bough.tracing.capture.tree import tensors_within

_Memoized = type(functools.lru_cache(lambda: None))
_LIBRARIES = (sys.stdlib_module_names | {"torch", "numpy", "bough"}) - {"__main__"}
_OPAQUE = (str, bytes, int, float, complex, Tensor, nn.Module, logging.Logger, types.ModuleType)
_PLAIN = (str, bytes, int, float, bool, type(None))
_DEPTH = 3
_LARGE = 1024  # a container of more entries is data, such as a vocabulary
_REGISTRIES = "_parameters", "_buffers", "_modules"
_HOOKS = tuple(k for k in vars(nn.Module()) if "hooks" in k)
_DESCRIPTORS = (
    staticmethod, classmethod, property, functools.cached_property, functools.partial, types.MethodType, _Memoized,
)  # fmt: skip
_ABSENT = object()
Place = Callable[[Any], object]
"""Sets what is at a place: an entry of a dict, a class attribute, the content of a cell."""


@contextmanager
def fresh_caches(model: nn.Module, hooks: bool = True) -> Iterator[None]:
    """While inside, memoized functions of the model's code have empty caches; afterwards, caches of all kinds are as before.

    `hooks`: so is what hooks wrote; not where the model runs on real data, of which a hook may take notes.
    """
    reached = _Reached(model, () if hooks else _HOOKS)
    try:
        reached.replace_memoized()
        yield
    finally:
        reached.restore()


def clear_memoized_methods(model: nn.Module) -> None:
    """Empty the caches of the memoized methods of a model that was changed in place: they are kept by `self`."""
    for kind in {base for m in model.modules() for base in type(m).__mro__}:
        for value in vars(kind).values():
            for memoized in (value, *(_content(c) for c in getattr(value, "__closure__", None) or ())):
                if isinstance(memoized, _Memoized):
                    memoized.cache_clear()


class _Reached:
    """The places that a model's code can reach, and what they hold."""

    def __init__(self, model: nn.Module, skipped: tuple[str, ...]) -> None:
        self._memoized: list[tuple[Place, Any]] = []  # (how to set the place, what is there)
        self._undo: list[tuple[Place, Any]] = []
        self._globals: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}  # module -> its names in use -> values
        self._classes: dict[type, dict[str, Any]] = {}
        self._cells: list[tuple[types.CellType, Any]] = []
        self._contents: list[tuple[Any, Any]] = []  # (container, a copy of it)
        self._names = {"forward", "__call__"}
        self._members: dict[str, list[tuple[Place, Any]]] = {}  # of classes, not yet named by any code
        self._seen: set[int] = set()
        self._waiting: list[tuple[Place, Any, int]] = []
        for module in model.modules():
            self._add_class(type(module))
            for key, value in module.__dict__.items():
                if key in skipped or (key in MACHINERY and (not value or key in _REGISTRIES)):
                    continue  # empty hooks, a dozen for each module: `substituted` restores them
                if not isinstance(value, _OPAQUE):
                    self._waiting.append((functools.partial(operator.setitem, module.__dict__, key), value, 1))
        while self._waiting:
            self._look(*self._waiting.pop())

    def replace_memoized(self) -> None:
        """Put functions with caches of their own in the place of memoized ones."""
        fresh: dict[int, Callable[..., Any]] = {}
        for place, value in self._memoized:
            self._undo.append((place, value))
            place(_with_fresh_cache(value, fresh))

    def restore(self) -> None:
        """Put everything back as it was."""
        for place, value in reversed(self._undo):
            place(value)
        for module, names in self._globals.values():
            for name, value in names.items():
                if module.get(name, _ABSENT) is not value:
                    _put_back(functools.partial(operator.setitem, module, name), functools.partial(module.pop, name), value)
        for kind, members in self._classes.items():
            now = vars(kind)
            for name in [n for n in (*members, *now) if now.get(n, _ABSENT) is not members.get(n, _ABSENT)]:
                _put_back(
                    functools.partial(setattr, kind, name), functools.partial(delattr, kind, name), members.get(name, _ABSENT)
                )
        for cell, value in self._cells:
            if _content(cell) is not value:
                cell.cell_contents = value
        for container, contents in self._contents:
            put(container, contents)

    def _look(self, place: Place, value: Any, depth: int) -> None:
        """Note what is at a place, and what can be reached from there."""
        if isinstance(value, _DESCRIPTORS):
            memoized = _memoized_in(value)
            if memoized is not None:
                self._memoized.append((place, value))
                value = memoized
        if id(value) in self._seen or isinstance(value, _OPAQUE):
            return
        self._seen.add(id(value))
        if isinstance(value, types.FunctionType):
            self._look_in_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, _DESCRIPTORS):
            for inner in _functions_of(value):
                self._look(_nowhere, inner, depth)
        else:
            self._look_in_container(value, depth)

    def _look_in_function(self, function: types.FunctionType) -> None:
        if _is_library(function.__module__) and _is_library(function.__globals__.get("__name__")):
            if (function.__module__ or "").startswith("bough."):  # around a forward that is set on a module
                inner = [_content(c) for c in function.__closure__ or ()]
                self._waiting += [(_nowhere, f, 0) for f in inner if isinstance(f, (types.FunctionType, types.MethodType))]
            return
        names, outside = _names_of(function.__code__), function.__globals__
        used = [outside.get(name) for name in names]
        for module in (outside, *(vars(m) for m in used if isinstance(m, types.ModuleType) and not _is_library(m.__name__))):
            self._look_in_module(module, names)
        for name in names - self._names:
            self._names.add(name)
            self._waiting += [(p, v, 0) for p, v in self._members.pop(name, ())]
        for cell in function.__closure__ or ():
            value = _content(cell)
            if value is not _ABSENT:
                self._cells.append((cell, value))
                self._waiting.append((functools.partial(setattr, cell, "cell_contents"), value, 0))
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), function.__dict__):
            self._waiting.append((_nowhere, value, 0))

    def _look_in_module(self, module: dict[str, Any], names: frozenset[str]) -> None:
        known = self._globals.setdefault(id(module), (module, {}))[1]
        for name in names - known.keys():
            value = known[name] = module.get(name, _ABSENT)
            self._waiting.append((functools.partial(operator.setitem, module, name), value, 0))

    def _look_in_container(self, value: Any, depth: int) -> None:
        if depth > _DEPTH:
            return
        if type(value) in DICTS:
            self._contents.append((value, dict(value)))
            inside: list[tuple[Place, Any]] = [(functools.partial(operator.setitem, value, k), v) for k, v in value.items()]
        elif type(value) in (list, deque, set):
            self._contents.append((value, type(value)(value)))
            inside = [(_nowhere, v) for v in value]
        elif isinstance(value, tuple):
            inside = [(_nowhere, v) for v in value]
        elif isinstance(getattr(value, "__dict__", None), dict):
            self._add_class(type(value))
            self._look_in_container(value.__dict__, depth)
            return
        else:
            return
        if len(inside) <= _LARGE:
            self._waiting += [(place, v, depth + 1) for place, v in inside if not isinstance(v, _OPAQUE)]

    def _add_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if base in self._classes or _is_library(base.__module__):
                continue
            self._classes[base] = dict(vars(base))
            for name, value in vars(base).items():
                entry = functools.partial(setattr, base, name), value
                if name in self._names:
                    self._waiting.append((*entry, 0))
                else:
                    self._members.setdefault(name, []).append(entry)


def _nowhere(value: Any) -> None:
    """The place of what is only looked at."""


def _put_back(place: Place, remove: Callable[[], object], value: Any) -> None:
    if value is _ABSENT:
        remove()
    else:
        place(value)


def _is_library(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in _LIBRARIES


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _ABSENT


@functools.lru_cache(4096)
def _names_of(code: types.CodeType) -> frozenset[str]:
    """Return the global names and attributes that code uses, that of functions defined in it included."""
    inner = (_names_of(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _functions_of(value: Any) -> Iterator[Any]:
    """Yield the functions that a descriptor, partial or memoized function calls."""
    if isinstance(value, (staticmethod, classmethod, _Memoized)):
        yield value.__wrapped__
    elif isinstance(value, property):
        yield from (f for f in (value.fget, value.fset) if f is not None)
    elif isinstance(value, (functools.cached_property, functools.partial)):
        yield value.func
    elif isinstance(value, types.MethodType):
        yield value.__func__


def _memoized_in(value: Any) -> Any:
    """Return the memoized function that a value is, or is a descriptor or partial of; None if there is none."""
    if isinstance(value, _Memoized):
        return value
    inner = None if isinstance(value, types.MethodType) else next(_functions_of(value), None)
    return inner if isinstance(inner, _Memoized) else None


def _with_fresh_cache(value: Any, fresh: dict[int, Callable[..., Any]]) -> Any:
    """Return the same function, descriptor or partial with an empty cache; one cache for each memoized function."""
    if isinstance(value, _Memoized):
        return fresh.setdefault(id(value), _memoized_anew(value))
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_with_fresh_cache(value.__wrapped__, fresh))
    if isinstance(value, property):
        return property(_with_fresh_cache(value.fget, fresh), value.fset, value.fdel)
    assert isinstance(value, functools.partial)
    return functools.partial(_with_fresh_cache(value.func, fresh), *value.args, **value.keywords)


def _memoized_anew(memoized: Any) -> Callable[..., Any]:
    """Return the function that is memoized, with an empty cache.

    What is computed of traced integers or of objects is not remembered, unless it is made of tensors: integers computed from
    equal ones are not equations of the same attributes.
    """
    function, results = memoized.__wrapped__, dict[Any, Any]()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = _untraced(args), tuple((k, _untraced(v)) for k, v in sorted(kwargs.items()))
        if key not in results:
            result = function(*args, **kwargs)
            if not _is_plain((args, *kwargs.values())) and next(tensors_within(result), None) is None:
                return result
            results[key] = result
        return results[key]

    call.cache_clear = results.clear  # type: ignore[attr-defined]
    call.cache_info = memoized.cache_info  # type: ignore[attr-defined]
    call.cache_parameters = memoized.cache_parameters  # type: ignore[attr-defined]
    return call


def _untraced(value: Any) -> Any:
    """Return the value with plain integers in place of traced ones: comparing those records an equation."""
    if type(value) is TracedInt:
        return int(value)
    return tuple(map(_untraced, value)) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if type(value) is tuple else type(value) in _PLAIN
