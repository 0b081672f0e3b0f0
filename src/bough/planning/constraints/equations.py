"""Integer equations: what the integers of modules become, and what the model's Python asks of the counts.

`E // num_heads` used as the size of an axis D, for instance, says E = H x D. Where one side can follow by setting an
attribute, it does; what remains binds groups' counts together: they are cut in proportion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from bough.graph import Graph, Group, GroupKind
from bough.spaces import Atom, Space, Sum, normal
from bough.spaces import count as count_of
from bough.tracing.capture.provenance import (
    Attribute,
    AxisSize,
    Equation,
    Expression,
    Operation,
    Path,
    attributes_in,
    evaluate,
    invert,
)

Monomials = dict[tuple[int, ...], int]  # ids of atoms, sorted -> coefficient


@dataclass(frozen=True, slots=True)
class Ties:
    """Groups that must be cut in proportion (lists of names), and groups that must stay (name -> why).

    `reasons`: for each group that is tied to another, why.
    """

    classes: tuple[tuple[str, ...], ...]
    frozen: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)


def solve(equations: Sequence[Equation], kept: Mapping[Atom, int]) -> tuple[dict[Path, int], list[Equation]]:
    """(new values of attributes, equations that can not be met) at the given counts."""
    values: dict[Path, int] = {}
    for e in equations:
        if isinstance(e.expression, Attribute):
            values.setdefault(e.expression.path, int(count_of(e.space, kept)))
    changed = True
    while changed:
        changed = False
        for e in equations:
            target = int(count_of(e.space, kept))
            unknown = [a for a in attributes_in(e.expression) if a.path not in values]
            if not unknown or evaluate(e.expression, values, kept) == target:
                continue
            for new in _candidates(e, unknown, target, values, kept):
                if evaluate(e.expression, {**values, **new}, kept) == target:
                    values.update(new)
                    changed = True
                    break
    failed = [e for e in equations if evaluate(e.expression, values, kept) != int(count_of(e.space, kept))]
    return values, failed


def _candidates(
    e: Equation, unknown: Sequence[Attribute], target: int, values: Mapping[Path, int], kept: Mapping[Atom, int]
) -> Iterator[dict[Path, int]]:
    """What the unknown attributes may be: of several, each the factor of its size, or only one of them changed."""
    if len(unknown) > 1:
        found: dict[Path, int] = {}
        for attribute in unknown:
            counts = {int(kept.get(a, a.size)) for a in normal(e.space).atoms if a.size == attribute.value}
            if len(counts) == 1:
                found[attribute.path] = counts.pop()
        if found:
            yield found
    for attribute in sorted(unknown, key=lambda a: -a.value):
        if sum(a.path == attribute.path for a in attributes_in(e.expression)) == 1:
            inverse = invert(e.expression, target, attribute.path, values, kept)
            if inverse is not None and inverse > 0:
                yield {attribute.path: inverse}


def ties(graph: Graph, frozen: Mapping[str, str], alike: Sequence[Sequence[str]] = ()) -> Ties:
    """What the equations demand of the groups' counts, with those in `frozen` fixed and those of each of `alike` tied."""
    return _Tying(graph, frozen, alike).result()


class _Tying:
    def __init__(self, graph: Graph, frozen: Mapping[str, str], alike: Sequence[Sequence[str]]) -> None:
        self.graph = graph
        self.frozen = dict(frozen)
        self.by_id = {id(g.atom): g for g in graph.groups}
        self.parent = {g.name: g.name for g in graph.groups}
        self.reasons: dict[str, str] = {}
        for names in alike:
            for name in names:
                self._tie(name, names[0], "uniform=True cuts the groups in one place of repeated layers alike")
        self._spread()

    def result(self) -> Ties:
        sides = self._sides()
        for _ in range(len(self.frozen) + 4):
            before = (dict(self.frozen), dict(self.parent))
            for left, right, where in sides:
                self._demand(left, right, where)
            self._spread()
            if before == (self.frozen, self.parent):
                break
        classes: dict[str, list[str]] = {}
        for g in self.graph.groups:
            if g.name not in self.frozen:
                classes.setdefault(self._find(g.name), []).append(g.name)
        return Ties(tuple(tuple(c) for c in classes.values()), self.frozen, self.reasons)

    def _sides(self) -> list[tuple[Monomials, Monomials, str]]:
        """Each equation as two polynomials over atoms, attributes replaced by the spaces they stand for."""
        meaning: dict[Path, Monomials] = {}
        sides: list[tuple[Monomials, Monomials, str]] = []
        rest: list[Equation] = []
        for e in self.graph.equations:
            if isinstance(e.expression, Attribute):
                own = self._of(e.space)
                known = meaning.setdefault(e.expression.path, own)
                if known is not own:
                    sides.append((known, own, e.where))
            else:
                rest.append(e)
        waiting = rest
        while waiting:
            later = []
            for e in waiting:
                unknown = {a.path for a in attributes_in(e.expression)} - meaning.keys()
                if not unknown:
                    pair = self._pair(e.expression, self._of(e.space), meaning)
                    if pair is not None:
                        sides.append((*pair, e.where))
                elif len(unknown) == 1 and self._learn(e, next(iter(unknown)), meaning):
                    continue
                else:
                    later.append(e)
            if len(later) == len(waiting):
                break
            waiting = later
        different: dict[Hashable, tuple[Monomials, Monomials, str]] = {}  # repeated layers repeat them
        for left, right, where in sides:
            if left != right:
                different.setdefault((frozenset(left.items()), frozenset(right.items())), (left, right, where))
        return [*different.values()]

    def _learn(self, e: Equation, path: Path, meaning: dict[Path, Monomials]) -> bool:
        """Takes c * attribute = space as the meaning of an attribute that is never used bare."""
        x = e.expression
        if isinstance(x, Operation) and x.op == "*":
            for one, other in ((x.left, x.right), (x.right, x.left)):
                if isinstance(one, Attribute) and one.path == path:
                    factor = self._polynomial(other, meaning)
                    whole = self._of(e.space)
                    quotient = _divide(whole, factor) if factor else None
                    if quotient is not None:
                        meaning[path] = quotient
                        return True
        return False

    def _pair(
        self, expression: Expression, space: Monomials, meaning: Mapping[Path, Monomials]
    ) -> tuple[Monomials, Monomials] | None:
        if isinstance(expression, Operation) and expression.op == "//":
            left, right = self._polynomial(expression.left, meaning), self._polynomial(expression.right, meaning)
            return None if left is None or right is None else (left, _times(right, space))
        polynomial = self._polynomial(expression, meaning)
        return None if polynomial is None else (polynomial, space)

    def _polynomial(self, expression: Expression, meaning: Mapping[Path, Monomials]) -> Monomials | None:
        if isinstance(expression, int):
            return {(): int.__index__(expression)}
        if isinstance(expression, AxisSize):
            return self._of(expression.space)
        if isinstance(expression, Attribute):
            return meaning.get(expression.path, {(): expression.value})
        left, right = self._polynomial(expression.left, meaning), self._polynomial(expression.right, meaning)
        if left is None or right is None:
            return None
        if expression.op == "*":
            return _times(left, right)
        if expression.op == "//":
            return _divide(left, right)
        sign = 1 if expression.op == "+" else -1
        return _plus(left, {m: sign * c for m, c in right.items()})

    def _of(self, space: Space) -> Monomials:
        space = normal(space)
        if isinstance(space, Atom):
            return {(id(space),): 1} if id(space) in self.by_id else {(): space.size}
        result: Monomials = {}
        if isinstance(space, Sum):
            for term in space.terms:
                result = _plus(result, self._of(term))
            return result
        result = {(): 1}
        for factor in space.factors:
            result = _times(result, self._of(factor))
        return result

    def _demand(self, left: Monomials, right: Monomials, where: str) -> None:
        left, right = self._fixed(left), self._fixed(right)
        if left == right:
            return
        why = f"the model's Python computes its size from another ({where})"
        apart = _without_common([m for m in {*left, *right} if left.get(m) != right.get(m)])
        pairs = self._pairs(apart) if len(left) == len(right) == 1 == left[next(iter(left))] else None
        if pairs:
            for one, other in pairs:
                self._tie(one.name, other.name, why)
            return
        if () in apart or any(len(set(m)) < len(m) for m in apart):  # not homogeneous: it holds for these sizes only
            self._hold([self.by_id[a] for m in apart for a in m], why)
            return
        carriers = self._carriers([[self.by_id[a] for a in m] for m in apart])
        self._hold([self.by_id[a] for m in apart for a in m if self.by_id[a] not in carriers], why)
        for other in carriers[1:]:
            self._tie(other.name, carriers[0].name, why)

    def _tie(self, one: str, other: str, why: str) -> None:
        if one != other:
            self.parent[self._find(one)] = self._find(other)
            self.reasons.setdefault(one, why)
            self.reasons.setdefault(other, why)

    def _pairs(self, products: list[tuple[int, ...]]) -> list[tuple[Group, Group]] | None:
        """The factors of two products side by side, where they are of the same sizes: each pair may be cut alike."""
        sides = [sorted((self.by_id[a] for a in m), key=lambda g: g.size) for m in products]
        same = len(sides) == 2 and [g.size for g in sides[0]] == [g.size for g in sides[1]]
        return list(zip(*sides, strict=True)) if same else None

    def _carriers(self, products: list[list[Group]]) -> list[Group]:
        """One group of each product, to be cut in proportion while the rest stay: tied ones first, head dims last."""
        alone = {self._find(p[0].name) for p in products if len(p) == 1}
        shared = [p for p in products if len(p) > 1]
        common = {self._find(g.name) for p in shared[:1] for g in p if all(g in q for q in shared)}
        return [
            min(p, key=lambda g: (self._find(g.name) not in alone, self._find(g.name) not in common, *_reluctance(g)))
            for p in products
        ]

    def _fixed(self, polynomial: Monomials) -> Monomials:
        """Held groups as numbers."""
        result: Monomials = {}
        for monomial, c in polynomial.items():
            fixed = prod(self.by_id[a].size for a in monomial if self.by_id[a].name in self.frozen)
            free = tuple(a for a in monomial if self.by_id[a].name not in self.frozen)
            result[free] = result.get(free, 0) + c * fixed
        return {m: c for m, c in result.items() if c}

    def _hold(self, groups: list[Group], why: str) -> None:
        for g in groups:
            self.frozen.setdefault(g.name, why)

    def _spread(self) -> None:
        """Freeze every group of a class that has a frozen one."""
        roots = {self._find(n): why for n, why in self.frozen.items()}
        for g in self.graph.groups:
            root = self._find(g.name)
            if root in roots and any(self._find(n) == root and n != g.name for n in self.frozen):
                self.frozen.setdefault(g.name, roots[root])

    def _find(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name


def _reluctance(group: Group) -> tuple[bool, int]:
    """Which of several factors is left free: not a head dimension where there is a choice, then the largest."""
    return group.kind is GroupKind.HEAD_DIM, -group.size


def _times(a: Monomials, b: Monomials) -> Monomials:
    result: Monomials = {}
    for m, p in a.items():
        for n, q in b.items():
            key = tuple(sorted(m + n))
            result[key] = result.get(key, 0) + p * q
    return result


def _plus(a: Monomials, b: Monomials) -> Monomials:
    result = dict(a)
    for m, c in b.items():
        result[m] = result.get(m, 0) + c
    return {m: c for m, c in result.items() if c}


def _without_common(monomials: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Monomials with the factors that all of them share divided out."""
    shared = Counter(monomials[0])
    for m in monomials[1:]:
        shared &= Counter(m)
    return [tuple((Counter(m) - shared).elements()) for m in monomials]


def _divide(a: Monomials, b: Monomials) -> Monomials | None:
    """a / b where b is one monomial that divides each of a's."""
    if len(b) != 1:
        return None
    (divisor, q) = next(iter(b.items()))
    result: Monomials = {}
    for monomial, c in a.items():
        left = list(monomial)
        for x in divisor:
            if x not in left:
                return None
            left.remove(x)
        if c % q:
            return None
        result[tuple(left)] = c // q
    return result
