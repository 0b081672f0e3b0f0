"""Which submodules a class makes from an attribute, as its source code says.

`self.fc = nn.Linear(self.num_features, classes)`, in any method, says that `num_features` is a width of `fc`. A local name
stands for the attribute that it is assigned to, as in `self.width = width; self.fc = Linear(width, 4)`, if the name is not
assigned again later.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

_GROWS = frozenset(("append", "extend", "insert", "add_module", "register_module", "register_buffer", "register_parameter"))
Symbol = tuple[str, ...]
"""("self", attribute), or (function, line, local name)."""


@dataclass(frozen=True, slots=True)
class Use:
    """An attribute is an argument of a call of `function` whose result is assigned to `children`.

    `argument`: its position or keyword; None where the attribute is a part of an argument, such as `2 * self.width`. `again`:
    the call is not in the constructor, so it may be made after a cut.
    """

    children: tuple[str, ...]
    function: str
    argument: int | str | None
    again: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    """What the source of a class says of its attributes; see the functions that return it."""

    uses: dict[str, list[Use]]
    quotients: dict[str, tuple[str, str]]
    products: dict[str, tuple[str, ...]]


_known: WeakKeyDictionary[type, _Source] = WeakKeyDictionary()


def uses_of(kind: type) -> dict[str, list[Use]]:
    """Return {attribute: its uses as a constructor argument} in the source of a class and of its bases outside torch."""
    return _source(kind).uses


def quotients_of(kind: type) -> dict[str, tuple[str, str]]:
    """Return {attribute: names of (dividend, divisor)} of the attributes that a class sets to a quotient.

    `self.groups = config.num_heads // self.num_kv_heads` gives {"groups": ("num_heads", "num_kv_heads")}. An attribute that the
    class sets in several ways is left out.
    """
    return _source(kind).quotients


def products_of(kind: type) -> dict[str, tuple[str, ...]]:
    """Return {attribute: attributes that the source of a class computes from it}.

    `self.hidden = self.width * pool.factor()` gives {"width": ("hidden",)}.
    """
    return _source(kind).products


def _source(kind: type) -> _Source:
    """Read the source of a class, once."""
    if kind not in _known:
        scopes = [_Scope(function) for function in _functions(kind)]
        _known[kind] = _Source(_uses(scopes), _quotients(scopes), _products(scopes))
    return _known[kind]


def _uses(scopes: Sequence[_Scope]) -> dict[str, list[Use]]:
    reader = _Reader()
    for scope in scopes:
        reader.read(scope)
    return reader.found()


def _quotients(scopes: Sequence[_Scope]) -> dict[str, tuple[str, str]]:
    found: dict[str, set[tuple[str, str] | None]] = {}
    for scope in scopes:
        for made, value in scope.attributes_set():
            for name in made:
                found.setdefault(name, set()).add(_quotient(value))
    single = {name: next(iter(pairs)) for name, pairs in found.items() if len(pairs) == 1}
    return {name: pair for name, pair in single.items() if pair is not None}


def _products(scopes: Sequence[_Scope]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for scope in scopes:
        for made, value in scope.attributes_set():
            for factor in scope.within(value) if isinstance(value, ast.BinOp) else ():
                if factor[0] == "self":
                    found.setdefault(factor[1], {}).update(dict.fromkeys(made))
    return {name: tuple(made) for name, made in found.items()}


def _quotient(node: ast.expr) -> tuple[str, str] | None:
    """Return the last names of dividend and divisor of `a // b`."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv)):
        return None
    names = [n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in (node.left, node.right)]
    return (names[0], names[1]) if all(names) else None


def _functions(kind: type) -> Iterator[ast.FunctionDef]:
    """Yield the methods in the source of a class and of its bases outside torch."""
    for base in kind.__mro__:
        if base is not object and not base.__module__.startswith("torch."):
            try:
                body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            except (OSError, TypeError, SyntaxError, IndexError):  # made by exec, or in C
                continue
            for function in getattr(body, "body", ()):
                if isinstance(function, ast.FunctionDef) and function.args.args:
                    yield function


class _Reader:
    """What is known of a class: symbols that have one value, and the calls that each of them is an argument of."""

    def __init__(self) -> None:
        self._same: dict[Symbol, Symbol] = {}
        self._uses: list[tuple[Symbol, Use]] = []

    def found(self) -> dict[str, list[Use]]:
        by_root: dict[Symbol, list[Use]] = {}
        for symbol, use in self._uses:
            by_root.setdefault(self._root(symbol), []).append(use)
        attributes = {s for s in (*self._same, *(s for s, _ in self._uses)) if s[0] == "self"}
        return {s[1]: by_root[self._root(s)] for s in attributes if self._root(s) in by_root}

    def read(self, scope: _Scope) -> None:
        for targets, value in scope.assignments:
            flat = [*targets, value]
            symbols = [s for s in map(scope.symbol, flat) if s is not None]
            for one in symbols[1:]:
                self._same[self._root(one)] = self._root(symbols[0])
        for children, value in scope.made():
            for call in (n for n in ast.walk(value) if isinstance(n, ast.Call)):
                named = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                for at, argument in [*enumerate(call.args), *((k.arg, k.value) for k in call.keywords)]:
                    plain = not scope.computed(argument)
                    self._uses += [
                        (s, Use(children, named, at if plain else None, scope.again)) for s in scope.within(argument)
                    ]

    def _root(self, symbol: Symbol) -> Symbol:
        while self._same.setdefault(symbol, symbol) != symbol:
            symbol = self._same[symbol]
        return symbol


class _Scope:
    """The assignments and names of a function."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.me = function.args.args[0].arg
        self.again = function.name != "__init__"
        self._name = function.name, str(function.lineno)
        arguments = (*function.args.args, *function.args.kwonlyargs, *function.args.posonlyargs)
        stores = [n for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        times = Counter([*(a.arg for a in arguments), *(n.id for n in stores)])
        last = {n.id: max(m.lineno for m in stores if m.id == n.id) for n in stores if times[n.id] > 1}
        self._settled = {**dict.fromkeys(times, 0), **last}  # a name has one value behind this line
        self._settled.pop(self.me, None)
        self.assignments = [pair for n in ast.walk(function) for pair in _pairs(n)]
        self._calls = [n.value for n in ast.walk(function) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
        self._lists = self._grown()
        self._computed = {
            t.id: value
            for targets, value in self.assignments
            for t in targets
            if isinstance(t, ast.Name) and isinstance(value, ast.BinOp) and times[t.id] == 1
        }

    def symbol(self, node: ast.expr) -> Symbol | None:
        """Return what a plain name or `self.name` refers to."""
        child = self._child(node)
        if child is not None:
            return "self", child
        settled = isinstance(node, ast.Name) and node.lineno > self._settled.get(node.id, node.lineno)
        return (*self._name, node.id) if settled else None  # type: ignore[attr-defined]

    def attributes_set(self) -> Iterator[tuple[list[str], ast.expr]]:
        """Yield (attributes of `self` that an assignment sets, the value)."""
        for targets, value in self.assignments:
            yield [symbol[1] for symbol in filter(None, map(self.symbol, targets)) if symbol[0] == "self"], value

    def computed(self, node: ast.expr) -> bool:
        """Return whether an argument is computed from symbols, rather than one."""
        return isinstance(node, ast.BinOp) or (isinstance(node, ast.Name) and node.id in self._computed)

    def within(self, node: ast.expr) -> Iterator[Symbol]:
        """Yield the symbols of an argument: itself, or those that arithmetic in it combines."""
        if isinstance(node, ast.BinOp):
            yield from self.within(node.left)
            yield from self.within(node.right)
        elif isinstance(node, ast.Name) and node.id in self._computed:
            yield from self.within(self._computed[node.id])
        else:
            symbol = self.symbol(node)
            if symbol is not None:
                yield symbol

    def made(self) -> Iterator[tuple[tuple[str, ...], ast.expr]]:
        """Yield (children of `self`, the expression that makes them)."""
        for targets, value in self.assignments:
            children = tuple(c for t in targets for c in map(self._child, _flat(t)) if c is not None)
            if children:
                yield children, value
                names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
                yield from ((children, item) for name in names for item in self._lists.get(name, ()))
        for call in self._calls:
            function, first = call.func, call.args[0] if call.args else None
            if isinstance(function, ast.Attribute) and function.attr in _GROWS:
                child = self._child(function.value)
                if child is None and isinstance(function.value, ast.Name) and function.value.id == self.me:
                    child = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
                if child is not None:
                    yield (child,), call

    def _child(self, node: ast.expr) -> str | None:
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.me
        return node.attr if own else None  # type: ignore[attr-defined]

    def _grown(self) -> dict[str, list[ast.expr]]:
        """Return {local list: what is put into it}."""
        lists: dict[str, list[ast.expr]] = {}
        for targets, value in self.assignments:
            if isinstance(value, (ast.List, ast.ListComp)):
                for name in (t.id for t in targets if isinstance(t, ast.Name)):
                    lists.setdefault(name, []).append(value)
        for call in self._calls:
            function = call.func
            grows = isinstance(function, ast.Attribute) and function.attr in _GROWS
            if grows and isinstance(function.value, ast.Name) and function.value.id in lists:  # type: ignore[attr-defined]
                lists[function.value.id] += call.args  # type: ignore[attr-defined]
        return lists


def _pairs(node: ast.AST) -> Iterator[tuple[Sequence[ast.expr], ast.expr]]:
    """Yield (targets, value) of an assignment; those of `a, b = c, d` one by one."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        yield [node.target], node.value
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) and len(target.elts) == len(node.value.elts):
                yield from (([t], v) for t, v in zip(target.elts, node.value.elts, strict=True))
                return
        yield node.targets, node.value


def _flat(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
