"""Results on shapes alone are as torch itself gives them: shape, type, strides, and what is refused."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bough.ops import spec

aten = torch.ops.aten


def strided(*shape, order=None, dtype=torch.float32):
    """A tensor of this shape whose dims stand in memory in this order."""
    order = order or tuple(range(len(shape)))
    back = [order.index(d) for d in range(len(shape))]
    return torch.zeros([shape[d] for d in order], dtype=dtype, device="meta").permute(back)


def halves(x):
    return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


HEADS = strided(2, 4, 5, 6, order=(0, 2, 1, 3))  # [batch, heads, tokens, head dim], as attention transposes it
PLAIN = strided(2, 4, 5, 6)
LAST = torch.zeros(2, 4, 5, 6, device="meta").to(memory_format=torch.channels_last)
GROWN = strided(2, 1, 5, 6).expand(2, 4, 5, 6)
FORMS = (PLAIN, HEADS, LAST, GROWN, *halves(PLAIN), *halves(HEADS), strided(3), strided(), strided(2, 0, 3))
OTHERS = (strided(6), strided(5, 1), strided(2, 1, 1, 6), strided(4, 5, 6), 2.0, strided(), strided(1, 1, 1, 1, 6), strided(7))


def same(ours, theirs):
    """Whether two results have the same shape and type, and strides that mean the same."""
    if isinstance(ours, tuple):
        return all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    strides = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (ours, theirs)]
    kinds = [(t.shape, t.dtype, t.device) for t in (ours, theirs)]
    return kinds[0] == kinds[1] and (strides[0] == strides[1] or not ours.numel())


def agree(name, func, *args, **kwargs):
    """Whether a shape function and torch give the same, or both refuse; None where the function leaves it to torch."""
    try:
        theirs = func(*args, **kwargs)
    except (RuntimeError, IndexError):
        theirs = None
    try:
        ours = spec(name).shape(*args, **kwargs)
    except RuntimeError:
        return theirs is None
    return None if ours is NotImplemented else theirs is not None and same(ours, theirs)


@pytest.mark.parametrize("name", ["relu", "gelu", "sigmoid", "neg", "sin", "rsqrt", "exp", "tanh", "silu"])
def test_of_one_operand(name):
    found = [agree(name, getattr(aten, name), x) for x in FORMS]
    assert False not in found
    assert found.count(True) > 4


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_of_two_operands(name):
    pairs = [(a, b) for a in FORMS for b in (*FORMS, *OTHERS)] + [(b, a) for a in FORMS for b in OTHERS]
    found = {(i, agree(name, getattr(aten, name), a, b)) for i, (a, b) in enumerate(pairs) if isinstance(a, Tensor)}
    assert False not in {agreed for _, agreed in found}
    assert sum(agreed is True for _, agreed in found) > len(found) / 2
    assert False not in {
        agree(f"{name}_", getattr(aten, f"{name}_"), a, b) for a in (PLAIN, HEADS, LAST) for b in (*FORMS, *OTHERS)
    }


@pytest.mark.parametrize("power", [2, 0.5, -1, strided()])
def test_powers(power):
    assert False not in {agree("pow", aten.pow, x, power) for x in FORMS}
    assert agree("pow", aten.pow, 2.0, PLAIN) is None


@pytest.mark.parametrize("name", ["mean", "sum", "amax", "amin"])
@pytest.mark.parametrize("keepdim", [False, True])
def test_reductions(name, keepdim):
    dims = ([-1], [0, 2], [1], [3, -1], [4], [2, 3])
    found = [agree(name, getattr(aten, name), x, dim, keepdim) for x in FORMS for dim in dims]
    assert False not in found
    assert found.count(True) > 4


@pytest.mark.parametrize("dim", [0, 1, -1, 4])
def test_joined(dim):
    some = [(a, b) for a in FORMS for b in (*FORMS, strided(2, 7, 5, 6), strided(0), strided(2, 4, 5, 6, dtype=torch.float64))]
    found = [agree("cat", aten.cat, list(pair), dim) for pair in (*some, *((b, a, b) for a, b in some))]
    assert False not in found
    assert dim == 4 or found.count(True) > 20


def convolution(*args):
    """torch's convolution; it refuses kernels that are larger than the input, which torch 2.12 does on values alone."""
    result = aten.convolution(*args)
    if 0 in result.shape:
        raise RuntimeError("the kernel is larger than the input")
    return result


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("options", [(1, 0, 1), (2, 1, 1), (1, 2, 3), (3, 0, 2)])
def test_convolutions(n, groups, options):
    stride, padding, dilation = ([o] * n for o in options)
    for inputs, outputs, kernel, bias in [(4, 8, 3, 8), (4, 8, 1, None), (4, 6, 2, 6), (8, 8, 3, 8), (4, 8, 9, 8)]:
        if outputs % groups:  # refused by convolutions on values, not on shapes
            continue
        x, w = strided(2, inputs, *(9, 8, 7)[:n]), strided(outputs, 4 // groups, *[kernel] * n)
        b = None if bias is None else strided(bias)
        for transposed in (False, True):
            rest = (stride, padding, dilation, transposed, [0] * n, groups)
            assert agree("convolution", convolution, x, w, b, *rest) is not False
    x, w = LAST, strided(8, 4 // groups, 3, 3)
    assert agree("convolution", aten.convolution, x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups) is None


@pytest.mark.parametrize("kernel", [[2], [3], [2, 3]])
@pytest.mark.parametrize("stride", [[], [2], [1, 2]])
@pytest.mark.parametrize("rest", [(), ([1],), ([1, 0], [1]), ([0], [2]), ([0], [1], True), ([2],), ([0], [5])])
def test_max_pooling(kernel, stride, rest):
    pool = "max_pool2d_with_indices"
    assert agree(pool, getattr(aten, pool), strided(2, 4, 7, 6), kernel, stride, *rest) in (True, None)
    assert agree(pool, getattr(aten, pool), LAST, kernel, stride, *rest) is None


def test_norms_and_contiguous():
    per_channel = [strided(4)] * 4
    for x in FORMS:
        if x.dim() == 4:
            assert agree("batch_norm", torch.batch_norm, x, *per_channel, False, 0.1, 1e-5, False) is True
            assert agree("layer_norm", F.layer_norm, x, x.shape[-1:], strided(x.shape[-1]), strided(x.shape[-1]), 1e-5) is True
            assert agree("_softmax", aten._softmax, x, -1, False) is not False
        assert agree("contiguous", Tensor.contiguous, x) is True
        assert (spec("contiguous").shape(x) is x) == x.is_contiguous()
