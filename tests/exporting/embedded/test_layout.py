"""Orders of memory against what torch says of strides and views."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from bough.exporting.embedded.lowering.layout import permuted, reshaped, strides

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def _in_memory(shape, order):
    """Return a tensor of a logical shape whose elements lie in memory in this order, numbered there."""
    return (
        torch.arange(math.prod(shape)).reshape([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
    )


@given(SIZES, st.randoms())
def test_strides_are_those_of_torch(shape, random):
    order = random.sample(range(len(shape)), len(shape))
    tensor = _in_memory(shape, order)
    pairs = zip(strides(tuple(order), tuple(shape)), tensor.stride(), shape, strict=True)
    assert all(ours == theirs for ours, theirs, size in pairs if size != 1)


@given(SIZES, st.randoms())
def test_a_permutation_moves_nothing(shape, random):
    order, dims = (random.sample(range(len(shape)), len(shape)) for _ in range(2))
    seen = _in_memory(shape, order).permute(dims)
    assert torch.equal(seen, _in_memory(tuple(seen.shape), permuted(tuple(order), dims)))


@given(SIZES, SIZES, st.randoms())
def test_a_reshape_is_a_view_or_none(shape, split, random):
    order = random.sample(range(len(shape)), len(shape))
    count = math.prod(shape)
    new = tuple(s for s in split if count % s == 0)[:1]
    new = (*new, count // math.prod(new))
    tensor = _in_memory(shape, order)
    found = reshaped(tuple(order), tuple(shape), new)
    if found is None:
        return
    assert torch.equal(tensor.reshape(new), _in_memory(new, found))


def test_channels_last_images_flatten_over_space_without_a_copy():
    assert reshaped((0, 2, 3, 1), (1, 8, 4, 5), (1, 8, 20)) == (0, 2, 1)
    assert reshaped((0, 2, 3, 1), (1, 8, 4, 5), (1, 160)) is None
