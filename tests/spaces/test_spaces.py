"""The laws of index spaces, each against an oracle that follows single indices."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bough.spaces import (
    UNIT,
    Atom,
    Each,
    Product,
    Sum,
    concat,
    coordinates,
    count,
    freeze,
    indices,
    is_frozen,
    normal,
    paths,
    product,
    unify,
)

atoms = st.integers(1, 6).map(Atom)
spaces = st.recursive(
    atoms,
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(Product) | st.lists(inner, min_size=1, max_size=3).map(Sum),
    max_leaves=6,
)


@st.composite
def splits(draw, size, depth=3):
    """Random spaces of a given size."""
    divisors = [d for d in range(2, size) if size % d == 0]
    kind = draw(st.sampled_from(["atom", "product", "sum"])) if depth and size > 1 else "atom"
    if kind == "product" and divisors:
        d = draw(st.sampled_from(divisors))
        return Product((draw(splits(d, depth - 1)), draw(splits(size // d, depth - 1))))
    if kind == "sum":
        k = draw(st.integers(1, size - 1))
        return Sum((draw(splits(k, depth - 1)), draw(splits(size - k, depth - 1))))
    return Atom(size)


def is_normal(space):
    if isinstance(space, Product):
        assert not any(isinstance(f, Product) or f.size == 1 for f in space.factors)
        assert not any(isinstance(f, Sum) for f in space.factors[:-1])
        assert len(space.factors) != 1
        return all(is_normal(f) for f in space.factors)
    if isinstance(space, Sum):
        assert len(space.terms) > 1
        assert not any(isinstance(t, Sum) for t in space.terms)
        return all(is_normal(t) for t in space.terms)
    return space.link is None and space.size > 1


@given(spaces)
def test_normal_form_keeps_the_size_and_is_its_own_normal_form(space):
    form = normal(space)
    assert form.size == space.size
    assert is_normal(form)
    assert normal(form) == form


@given(spaces, spaces, spaces)
def test_a_product_distributes_over_a_major_sum(a, b, k):
    assert product(Sum((a, b)), k) == concat(product(a, k), product(b, k))
    assert product(k, Sum((a, b)), k) == product(k, concat(product(a, k), product(b, k)))


def test_a_space_of_size_one_vanishes_from_a_product():
    a = Atom(5)
    assert normal(Product((Atom(1), a, Atom(1)))) is a
    assert normal(Atom(1)) is UNIT


pairs = st.sampled_from([4, 6, 8, 12, 16, 24]).flatmap(lambda n: st.tuples(splits(n), splits(n)))


@given(pairs, st.randoms(use_true_random=False))
def test_unified_spaces_keep_the_same_indices_whatever_is_kept(pair, random):
    a, b = pair
    unify(a, b, "conflict")
    free = dict.fromkeys(x for s in (a, b) for x in normal(s).atoms if x.reason is None)
    kept = {x: np.array(sorted(random.sample(range(x.size), random.randint(1, x.size)))) for x in free}
    assert np.array_equal(indices(a, kept), indices(b, kept))
    numbers = {x: len(i) for x, i in kept.items()}
    assert count(a, numbers) == count(b, numbers) == len(indices(a, kept))


@given(pairs)
def test_unify_gives_one_normal_form_or_freezes_what_differs(pair):
    a, b = pair
    unify(a, b, "conflict")
    x, y = normal(a), normal(b)
    assert x == y or any(atom.reason == "conflict" for atom in (*x.atoms, *y.atoms))
    unify(b, a, "conflict")
    assert normal(a) == x or is_frozen(a)


@given(spaces, st.randoms(use_true_random=False))
def test_coordinates_agree_with_indices(space, random):
    form = normal(space)
    for atom in form.atoms:
        kept = np.array(sorted(random.sample(range(atom.size), random.randint(1, atom.size))))
        there = np.ones(form.size, dtype=bool)
        for units in coordinates(form, atom):
            there &= (units < 0) | np.isin(units, kept)
        assert np.array_equal(np.flatnonzero(there), indices(form, {atom: kept}))


@given(spaces)
def test_each_index_is_on_one_path(space):
    ways = paths(space)
    assert sum(Product(p).size for p in ways) == space.size
    for atom in normal(space).atoms:
        having = sum((np.stack(coordinates(space, atom)) >= 0).any(0))
        assert having == sum(Product(p).size for p in ways if atom in p)


@st.composite
def led(draw, major, minor):
    """Random spaces where each path with `minor` has `major` once before it, at any distance, sums included."""
    between = draw(st.lists(atoms, max_size=1))
    behind = draw(st.lists(atoms, max_size=1))
    last = draw(st.sampled_from([minor, Sum((minor, minor)), Sum((Atom(2), minor))]))
    one = Product((*draw(st.lists(atoms, max_size=1)), major, *between, last, *behind))
    return draw(st.sampled_from([one, Sum((one, Atom(3), one)), Sum((Product((major, minor)), major))]))


@given(st.integers(2, 4), st.integers(2, 5), st.data())
def test_ragged_indices_follow_single_indices(h, d, data):
    """The oracle: an index stays where its unit is among those kept for the unit of the other that it has."""
    major, minor = Atom(h), Atom(d)
    space = normal(data.draw(led(major, minor)))
    n = data.draw(st.integers(1, d))
    units = np.array([sorted(data.draw(st.permutations(range(d)))[:n]) for _ in range(h)])
    heads = np.array(sorted(data.draw(st.sets(st.integers(0, h - 1), min_size=1))))
    own, other = coordinates(space, minor)[0], coordinates(space, major)[0]
    expected = [
        i for i in range(space.size)
        if (other[i] < 0 or other[i] in heads) and (own[i] < 0 or own[i] in units[other[i]])
    ]  # fmt: skip
    kept = {major: heads, minor: Each(major, units)}
    assert indices(space, kept).tolist() == expected
    assert count(space, {a: len(k) for a, k in kept.items()}) == len(expected)
    same = {major: heads, minor: Each(major, np.tile(units[0], (h, 1)))}
    assert np.array_equal(indices(space, same), indices(space, {major: heads, minor: units[0]}))


def test_ragged_indices_may_follow_one_another():
    a, b, c = Atom(2), Atom(3), Atom(2)
    kept = {b: Each(a, np.array([[0, 1], [1, 2]])), c: Each(b, np.array([[0], [1], [0]]))}
    assert indices(Product((a, b, c)), kept).tolist() == [0, 3, 6 + 3, 6 + 4]


def test_unify_refines_an_atom_everywhere():
    hidden, heads, dims = Atom(12), Atom(3), Atom(4)
    fused = Sum((hidden, hidden))
    unify(hidden, Product((heads, dims)))
    assert normal(fused) == Sum((Product((heads, dims)), Product((heads, dims))))


def test_no_common_refinement_freezes_both_sides_with_the_reason():
    a, b = Product((Atom(4), Atom(6))), Product((Atom(6), Atom(4)))
    unify(a, b, "no way")
    assert is_frozen(a)
    assert is_frozen(b)
    assert {x.reason for x in a.atoms} == {"no way"}


def test_freezing_an_atom_freezes_what_it_is_refined_into():
    whole, a, b = Atom(6), Atom(2), Atom(3)
    freeze(whole, "input")
    unify(whole, Product((a, b)))
    assert a.reason == b.reason == "input"


def test_a_recursive_type_freezes():
    a = Atom(4)
    unify(a, Sum((a, Atom(0))), "recursive")
    b, c = Atom(4), Atom(1)
    unify(b, Product((b, c)), "recursive")
    assert normal(b) is b
    x = Atom(6)
    unify(x, Sum((Product((Atom(2), Atom(2))), Atom(2))))
    y = Sum((x, Atom(3)))
    unify(Atom(9), y)
    unify(x, Sum((Atom(3), Atom(3))), "recursive")
    assert normal(x).size == 6


@pytest.mark.parametrize("reverse", [False, True])
def test_ten_thousand_unifications_take_linear_work(reverse):
    """Work is counted, not timed: each find on the finished chain takes few steps."""
    chain = [Atom(8) for _ in range(10_001)]
    pairs = list(itertools.pairwise(chain))
    for a, b in reversed(pairs) if reverse else pairs:
        unify(a, b)
    unify(chain[0], Product((Atom(2), Atom(4))))
    for atom in chain:
        normal(atom)
    assert all(atom.link is not None and not isinstance(atom.link.__class__, Atom) for atom in chain)
    assert len({id(normal(atom)) for atom in chain}) == 1
