"""How two spaces become the same: by their coarsest common refinement."""

from __future__ import annotations

from bough.spaces.space import Atom, Product, Space, Sum, freeze, normal


def unify(a: Space, b: Space, reason: object = "no common refinement") -> None:
    """Makes `a` and `b` the same space, or freezes (for `reason`) the parts that have no common refinement."""
    work: list[tuple[Space, Space]] = [(a, b)]
    while work:
        left, right = work.pop()
        left, right = normal(left), normal(right)
        if left is right or left == right:
            continue
        if left.size != right.size:
            freeze(left, reason)
            freeze(right, reason)
        elif isinstance(left, Atom):
            _bind(left, right, reason)
        elif isinstance(right, Atom):
            _bind(right, left, reason)
        elif isinstance(left, Sum) or isinstance(right, Sum):
            _align_terms(left, right, work)
        else:
            _align_factors(left, right, work, reason)


def _bind(atom: Atom, space: Space, reason: object) -> None:
    if atom in space.atoms and space is not atom:  # a = a x b has no finite solution
        freeze(space, reason)
        return
    atom.link = space
    if atom.reason is not None:
        freeze(space, atom.reason)


def _refine(atom: Atom, space: Space) -> None:
    atom.link = space
    if atom.reason is not None:
        for part in space.atoms:
            part.reason = atom.reason


def _cut(space: Space, at: int) -> tuple[Space, Space]:
    """Splits a space (in normal form) after its first `at` indices."""
    if at in (0, space.size):
        return (Sum(()), space) if not at else (space, Sum(()))
    if isinstance(space, Atom):
        parts = Atom(at), Atom(space.size - at)
        _refine(space, Sum(parts))
        return parts
    if isinstance(space, Sum):
        first, rest = space.terms[0], Sum(space.terms[1:])
        if at <= first.size:
            left, right = _cut(first, at)
            return left, Sum((right, rest))
        left, right = _cut(rest, at - first.size)
        return Sum((first, left)), right
    major, minor = space.factors[0], Product(space.factors[1:])
    whole, part = divmod(at, minor.size)
    before, after = _cut(major, whole)
    if not part:
        return Product((before, minor)), Product((after, minor))
    _, later = _cut(normal(after), 1)  # the cut goes through one unit of the major factor
    left, right = _cut(normal(minor), part)
    return Sum((Product((before, minor)), left)), Sum((right, Product((later, minor))))


def _align_terms(left: Space, right: Space, work: list[tuple[Space, Space]]) -> None:
    """Sum against Sum or Product: cuts both at each other's boundaries, left to right."""
    stacks: tuple[list[Space], list[Space]] = ([left], [right])
    while stacks[0] and stacks[1]:
        heads = [_head(stack) for stack in stacks]
        a, b = heads
        if a.size == b.size:
            work.append((a, b))
            continue
        large = 0 if a.size > b.size else 1
        parts = _cut(heads[large], heads[1 - large].size)
        stacks[large].extend(reversed(parts))
        stacks[1 - large].append(heads[1 - large])


def _head(stack: list[Space]) -> Space:
    space = normal(stack.pop())
    while isinstance(space, Sum):
        stack.extend(reversed(space.terms))
        space = normal(stack.pop())
    return space


def _align_factors(left: Space, right: Space, work: list[tuple[Space, Space]], reason: object) -> None:
    """Product against Product: factors both by each other's factors, from the minor end."""
    stacks: tuple[list[Space], list[Space]] = ([left], [right])
    while stacks[0] and stacks[1]:
        heads = [_minor(stack) for stack in stacks]
        a, b = heads
        if a.size == b.size:
            work.append((a, b))
            continue
        large = 0 if a.size > b.size else 1
        parts = _factor(heads[large], heads[1 - large].size, reason)
        if parts is None:
            _freeze_factors(a, b, stacks, reason)
            continue
        stacks[large].extend(parts)
        stacks[1 - large].append(heads[1 - large])


def _minor(stack: list[Space]) -> Space:
    space = normal(stack.pop())
    while isinstance(space, Product) and space.factors:
        stack.extend(space.factors)
        space = normal(stack.pop())
    return space


def _factor(space: Space, minor: int, reason: object) -> tuple[Space, Space] | None:
    """Writes an Atom or a Sum as (X, Y) with space = X x Y and size(Y) = `minor`, where that is possible."""
    if space.size % minor:
        return None
    if isinstance(space, Atom):
        parts = Atom(space.size // minor), Atom(minor)
        _refine(space, Product(parts))
        return parts
    if not isinstance(space, Sum) or any(term.size % minor for term in space.terms):
        return None
    shared = Atom(minor)
    majors = [Atom(term.size // minor) for term in space.terms]
    for term, major in zip(space.terms, majors, strict=True):
        unify(term, Product((major, shared)), reason)
    return Sum(majors), shared


def _freeze_factors(a: Space, b: Space, stacks: tuple[list[Space], list[Space]], reason: object) -> None:
    sizes = [a.size, b.size]
    freeze(a, reason)
    freeze(b, reason)
    while sizes[0] != sizes[1]:
        short = 0 if sizes[0] < sizes[1] else 1
        if not stacks[short]:
            short = 1 - short
        space = _minor(stacks[short])
        freeze(space, reason)
        sizes[short] *= space.size
        if not stacks[0] and not stacks[1]:
            return
