"""Integer attributes that `forward` does not read: which follow a cut, and which become stale."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from bough.graph import Graph
from bough.planning.attributes.evidence import Evidence
from bough.planning.attributes.names import names_other
from bough.planning.attributes.places import Place, Places
from bough.planning.attributes.stale import Stale
from bough.planning.attributes.standard_layers import layer_widths
from bough.spaces import Atom, count
from bough.tracing.capture.attribute_numbers import attribute_numbers, holds
from bough.tracing.capture.provenance import Path, attributes_in, key_of


class SizeAttributes:
    """The integers that modules hold, each with the places of its size, and what says which place is meant."""

    def __init__(self, graph: Graph) -> None:
        self._model = graph.model
        read = {a.path for e in graph.equations for a in attributes_in(e.expression)}
        self._places = Places(graph)
        self._evidence = Evidence(graph, self._places)
        self._attributes: list[tuple[Path, int, list[Place]]] = []
        for path, value in _integers(graph.model):
            places = self._places.of(path[0], value) if path not in read else []
            if places:
                self._attributes.append((path, value, places))

    def at(self, sizes: Mapping[Atom, int]) -> tuple[dict[Path, int], list[Stale]]:
        """Return (the new values of attributes that surely are widths, the attributes that become stale) of a cut.

        Args:
            sizes: units kept of each group that is cut.
        """
        numbers: dict[Path, int] = {}
        stale: list[Stale] = []
        new = {id(p): int(count(p.space, sizes)) for _, _, places in self._attributes for p in places}

        def size(place: Place) -> int:
            return new[id(place)] if id(place) in new else int(count(place.space, sizes))

        def agree(places: Sequence[Place]) -> bool:
            return len({size(p) for p in places}) == 1

        for path, value, places in self._attributes:
            if all(size(p) == value for p in places):
                continue
            left, sure = places, False
            if len(path) == 2 and path[1] in self._model.get_submodule(path[0]).__dict__:
                left, sure = self._evidence.narrowed(path[0], path[1], value, agree)
            elif beside := (self._evidence.beside_a_name(path, value) if holds(self._model, path) else []):
                left, sure = beside, agree(beside)
            after = sorted({size(p) for p in left} - {value})
            if sure and after:
                numbers[path] = after[0]
            elif after and not names_other(_named(path)):
                stale.append(self.stale(path, value, after))
        return numbers, stale

    def stale(self, path: Path, value: int, sizes: Sequence[int]) -> Stale:
        """Return an attribute as one that is not set."""
        return Stale(key_of(path), value, tuple(sizes), _methods(type(self._model.get_submodule(path[0])), path))


def _named(path: Path) -> str:
    """Return the innermost name on a path."""
    return next(k for k in reversed(path) if not k.isdigit())


def _integers(model: nn.Module) -> Iterator[tuple[Path, int]]:
    """Yield (path, value) of the integers above 1 that modules hold, those of closures, partials and classes included."""
    modules = dict(model.named_modules())
    for path, value in attribute_numbers(model):
        module = modules[path[0]]
        standard = type(module).__module__.startswith("torch.nn.") or (len(path) == 2 and path[1] in layer_widths(module))
        if type(value) is int and value > 1 and not standard:
            yield path, value
    for name, module in modules.items():
        if not type(module).__module__.startswith("torch."):
            for key, value in module.__dict__.items():
                yield from (((name, key, inner), n) for inner, n in _within_callable(value))
            yield from (((name, key), n) for key, n in _of_class(type(module)) if key not in module.__dict__)


def _within_callable(value: Any) -> Iterator[tuple[str, int]]:
    """Yield the integers that a partial or a closure keeps."""
    kept: dict[str, Any] = {}
    if isinstance(value, functools.partial):
        kept = {**{str(i): v for i, v in enumerate(value.args)}, **value.keywords}
    elif isinstance(value, types.FunctionType) and value.__closure__:
        for key, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
            try:
                kept[key] = cell.cell_contents
            except ValueError:  # not yet assigned
                continue
    yield from ((k, v) for k, v in kept.items() if type(v) is int and v > 1)


def _of_class(kind: type) -> Iterator[tuple[str, int]]:
    """Yield the integers among the attributes of a class outside torch."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("torch.") and base is not object:
            for key, value in vars(base).items():
                if type(value) is int and value > 1 and not key.startswith("__") and key not in seen:
                    seen.add(key)
                    yield key, value


def _methods(kind: type, path: Path) -> tuple[str, ...]:
    """Return the methods and properties of a class outside torch whose code reads an attribute, without the constructor."""
    found: dict[str, None] = {}
    named = {path[1], _named(path[1:])}
    for base in kind.__mro__:
        if base is not object and not base.__module__.startswith("torch."):
            for key, value in vars(base).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                code = getattr(_unwrapped(function), "__code__", None)
                if code is not None and named <= {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}:
                    found[key] = None
    found.pop("__init__", None)
    return tuple(found)


def _unwrapped(function: Any) -> Any:
    """Return the function inside decorators."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
