"""Which of the places of its size an attribute is the width of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from inspect import signature

from torch import nn

from bough.graph import Graph
from bough.planning.attributes.names import names_width
from bough.planning.attributes.places import INPUT, Place, Places, identity
from bough.planning.attributes.source import Use, products_of, quotients_of, uses_of
from bough.planning.attributes.standard_layers import layer_widths
from bough.spaces import Space, normal
from bough.tracing.capture.attribute_numbers import read
from bough.tracing.capture.provenance import Attribute, Path

_EACH = 4  # sibling modules compared for each value of the attribute
_INPUTS = {"in_features": (INPUT, -1), "in_channels": (INPUT, 1), "input_size": (INPUT, -1)}
_WEIGHTS = {"out_features": 0, "num_features": 0, "num_channels": 0, "embedding_dim": 1, "num_embeddings": 0}

Agree = Callable[[Sequence[Place]], bool]
"""Whether places have one size after the cut."""


class Evidence:
    """What the modules of a model, the types of its tensors and its source code say of its integer attributes."""

    def __init__(self, graph: Graph, places: Places) -> None:
        self._places, self._model, self._ops = places, graph.model, graph.ops
        self._modules = dict(graph.model.named_modules())
        self._same_class: dict[type, list[str]] = defaultdict(list)
        for name, module in self._modules.items():
            self._same_class[type(module)].append(name)
        self._known_widths: dict[tuple[str, str], Space] = {
            e.expression.path[:2]: e.space
            for e in graph.equations
            if isinstance(e.expression, Attribute) and len(e.expression.path) == 2
        }

    def narrowed(self, module: str, name: str, value: int, agree: Agree) -> tuple[list[Place], bool]:
        """Return (the places that attribute `name` of a module may be the width of, whether it surely is).

        Args:
            module: name of the module that holds the attribute.
            name: of the attribute.
            value: of the attribute.
            agree: whether some places have one size after the cut.
        """
        tracked, others = self._siblings(module, name, value, self._places.of(module, value))
        if tracked and agree(tracked):
            return tracked, True
        left = tracked or others
        if not left and names_width(name):
            return self._places.of(module, value), False
        evidence = (
            self._layers(module, name, value), self._source(module, name, value, left), self._quotient(module, name, value)
        )  # fmt: skip
        for found in evidence:
            if found and agree(found):
                return found, True
        return left, bool(left) and names_width(name) and agree(left)

    def beside_a_name(self, path: Path, value: int) -> list[Place]:
        """Return the axes that an entry of a dict is the width of if another entry names a module: those of its output."""
        holder = read(self._model, path[:-1])
        names = [v for v in holder.values() if isinstance(v, str) and v in self._modules] if isinstance(holder, dict) else []
        found: list[Place] = []
        for name in filter(None, names):
            inside = (op for op in reversed(self._ops) if f"{op.module}.".startswith(f"{name}."))
            axes = next((op.results[0] for op in inside if op.results), ())
            found += [Place(name, d, (), normal(a)) for d, a in enumerate(axes) if a.size == value]
        return found

    def _siblings(self, module: str, name: str, value: int, places: list[Place]) -> tuple[list[Place], list[Place]]:
        """Return the places that the attribute follows in other modules of the class, and those that may be so.

        A place is followed if its size is the attribute's value in modules of the same class that have other values. A place
        that has another size than the attribute in one of them is in neither list. Modules where the attribute is 1 say
        nothing: one group, say, is none.
        """
        by_value: dict[int, list[str]] = defaultdict(list)
        for other in self._same_class[type(self._modules[module])]:
            other_value = self._modules[other].__dict__.get(name)
            if type(other_value) is int and other_value > 1 and other != module and len(by_value[other_value]) < _EACH:
                by_value[other_value].append(other)
        tracked: list[Place] = []
        possible: list[Place] = []
        for place in places:
            seen, refuted = False, False
            for other_value, others in by_value.items():
                sizes = {self._places.size(other, place.within(module)) for other in others} - {None}
                refuted |= bool(sizes - {other_value})
                seen |= sizes == {other_value} and other_value != value
            if not refuted:
                (tracked if seen else possible).append(place)
        return tracked, possible

    def _layers(self, module: str, name: str, value: int) -> list[Place]:
        """Return the widths that standard layers inside have under the same name and with the same value."""
        found = []
        for inner, layer in self._modules.items():
            inside = inner.startswith(f"{module}." if module else "") and inner != module
            known = name in layer_widths(layer) or (inner, name) in self._known_widths
            if inside and known and layer.__dict__.get(name) == value:
                space = self._known_widths.get((inner, name), self._width(inner, layer, name))
                if space is None:
                    return []
                found.append(Place(inner, 0, (), space))
        return found

    def _width(self, inner: str, layer: nn.Module, name: str) -> Space | None:
        axes = self._places.axes
        if name in _INPUTS:
            end, dim = _INPUTS[name]
            dims = [d for n, d in axes if n == f"{inner}.{end}"]
            at = (f"{inner}.{end}", max(dims, default=0) if dim < 0 else dim)
        elif name == "out_channels":
            if getattr(layer, "transposed", False) and getattr(layer, "groups", 1) > 1:
                return None
            at = (f"{inner}.weight", int(getattr(layer, "transposed", False)))
        else:
            at = (f"{inner}.weight", _WEIGHTS.get(name, -1))
        space = axes.get(at)
        return space if space is not None and space.size == layer.__dict__[name] else None

    def _source(self, module: str, name: str, value: int, places: Sequence[Place]) -> list[Place]:
        """Return the places that all submodules share which the class makes from the attribute, or from one equal to it.

        What methods other than the constructor make counts alone, where they make something: this is made after a cut.
        """
        shared: list[Place] = []
        holder = self._modules[module]
        uses, products = uses_of(type(holder)), products_of(type(holder)).get(name, ())
        names = [name, *(p for p in products if holder.__dict__.get(p) == value)]
        made = [use for n in names for use in uses.get(n, ())]
        for use in [use for use in made if use.again] or made:
            inside = self._passed(module, use, value, places)
            spaces = {identity(p.space) for p in shared}
            both = [p for p in inside if identity(p.space) in spaces] if shared else inside
            if inside and not both:
                return []
            shared = both or shared
        return shared

    def _quotient(self, module: str, name: str, value: int) -> list[Place]:
        """Return the places of an attribute that the class sets to a quotient of two numbers: the repeats of the divisor."""
        holder = self._modules[module]
        pair = quotients_of(type(holder)).get(name)
        if pair is None:
            return []
        dividend, divisor = (_number(holder, operand) for operand in pair)
        if dividend is None or divisor is None or dividend != divisor * value:
            return []
        return self._places.repeats(module, value, divisor)

    def _passed(self, module: str, use: Use, value: int, places: Iterable[Place]) -> list[Place]:
        """Return the places of an attribute's size in the submodules that a call makes from it."""
        found: list[Place] = []
        for child in use.children:
            inner = f"{module}.{child}" if module else child
            layer = self._modules.get(inner)
            width = "" if layer is None else _parameter(layer, use)
            if layer is None or width not in layer_widths(layer):
                found += [p for p in places if p.within(module)[0].split(".")[0] == child]
            elif layer.__dict__.get(width) == value:
                space = self._width(inner, layer, width)
                found += [] if space is None else [Place(inner, 0, (), space)]
        return found


def _parameter(layer: nn.Module, use: Use) -> str:
    """Return the parameter of a layer's constructor that a call passes an argument to; empty where that is not known."""
    if type(layer).__name__ != use.function or use.argument is None:
        return ""
    if isinstance(use.argument, str):
        return use.argument
    names = [*signature(type(layer)).parameters]
    return names[use.argument] if use.argument < len(names) else ""


def _number(module: nn.Module, name: str) -> int | None:
    """Return the integer of this name that a module holds, itself or in a config; None if there is none."""
    for holder in (module.__dict__, *(getattr(v, "__dict__", {}) for v in module.__dict__.values())):
        if type(holder.get(name)) is int:
            return int(holder[name])
    return None
