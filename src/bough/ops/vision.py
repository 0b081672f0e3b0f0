"""Ops that sample images at given places: deformable convolutions, pooled regions, grids; and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bough.graph import GroupKind
from bough.ops.context import KERNEL, Context, Typing, argument
from bough.ops.spec import Place, RecordedOp, contracts_within, rule
from bough.spaces import Product, Space, freeze


def _places(c: Context, n: int, what: str = "spatial position") -> Space:
    return c.data(n, what)


@rule("torchvision::deform_conv2d")
def _deformable(c: Context, call: Any, result: Any) -> Typing:
    """A convolution whose taps are moved: offsets [N, parts x taps x 2, ...], each part of the channels with its own."""
    x, w, offset, mask, bias = (c.of(t) for t in call.args[:5])
    groups, parts, masked = call.args[11:14]
    taps = w.axes[2].size * w.axes[3].size
    for kernel in w.axes[2:]:
        freeze(kernel, KERNEL)
    g, each_out = c.fresh(groups), c.fresh(w.axes[0].size // groups)
    c.unify(w.axes[0], Product((g, each_out)))
    c.unify(x.axes[1], Product((g, w.axes[1])))
    part = c.fresh(parts)
    c.unify(x.axes[1], Product((part, c.fresh(x.axes[1].size // parts))))
    for moves, width in ((offset, 2 * taps), (mask, taps)) if masked else ((offset, 2 * taps),):
        c.unify(moves.axes[0], x.axes[0])
        c.unify(moves.axes[1], Product((part, c.data(width, "where the kernel samples"))))
    c.contract(w.axes[1], w.axes[1], x.null[1] or w.null[1])
    c.consume(g, part)
    c.mark(GroupKind.CHANNEL, w.axes[0])
    c.unify(bias.axes[0], w.axes[0])
    spatial = tuple(_places(c, n) for n in result.shape[2:])
    c.macs(x.axes[0], *spatial, g, w.axes[1], each_out, *w.axes[2:])
    return Typing((x.axes[0], w.axes[0], *spatial), (False, w.null[0] and bias.null[0], True, True))


@rule("torchvision::roi_align", "torchvision::roi_pool")
def _regions(c: Context, call: Any, result: Any) -> Any:
    """Regions [K, 5] of images [N, C, H, W], pooled to [K, C, h, w]."""
    x, regions = c.of(call.args[0]), c.of(call.args[1])
    _read_whole(c, x.axes[0], *x.axes[2:], regions.axes[1])

    def typed(r: Any, zero: bool) -> Typing:
        return Typing((regions.axes[0], x.axes[1], *(_places(c, n) for n in r.shape[2:])), (False, zero, True, True))

    if isinstance(result, (tuple, list)):
        return [typed(result[0], x.null[1]), *(typed(r, False) for r in result[1:])]
    return typed(result, x.null[1])


@rule("torchvision::ps_roi_align", "torchvision::ps_roi_pool")
def _regions_by_place(c: Context, call: Any, result: Any) -> list[Typing]:
    """Each place of the pooled region has channels of its own: C x h x w of them come in."""
    x, regions = c.of(call.args[0]), c.of(call.args[1])
    _read_whole(c, x.axes[0], *x.axes[2:], regions.axes[1])
    channels = c.fresh(result[0].shape[1])
    places = [_places(c, n) for n in result[0].shape[2:]]
    c.unify(x.axes[1], Product((channels, *places)))
    axes = (regions.axes[0], channels, *places)
    return [Typing(axes, (False, x.null[1], True, True)), *(Typing(axes, (False,) * 4) for _ in result[1:])]


@rule("torchvision::nms")
def _best_boxes(c: Context, call: Any, result: Any) -> Typing:
    """The numbers of some boxes."""
    boxes, scores = c.of(call.args[0]), c.of(call.args[1])
    c.unify(boxes.axes[0], scores.axes[0])
    _read_whole(c, *boxes.axes)
    return Typing(c.empty(result), (False,))


def _read_whole(c: Context, *axes: Space) -> None:
    for axis in axes:
        c.freeze(axis, "places in an image")


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def _grid(c: Context, call: Any, result: Any) -> Typing:
    """Images [N, C, ...] at places [N, ..., dims]: weighted sums of pixels, so zero channels stay zero."""
    x, grid = c.of(call.args[0]), c.of(call.args[1])
    _read_whole(c, *x.axes[2:], grid.axes[-1])
    c.unify(x.axes[0], grid.axes[0])
    places = grid.axes[1:-1]
    return Typing((x.axes[0], x.axes[1], *places), (x.null[0], x.null[1], *(False,) * len(places)))


@rule("affine_grid_generator")
def _affine_grid(c: Context, call: Any, result: Any) -> Typing:
    theta = c.of(call.args[0])
    _read_whole(c, *theta.axes[1:])
    return Typing((theta.axes[0], *c.empty(result)[1:]), (theta.null[0], *(False,) * (result.dim() - 1)))


@rule("max_unpool2d", "max_unpool3d")
def _unpool(c: Context, call: Any, result: Any) -> Typing:
    """Values put back where the indices say, among zeros."""
    x, index = c.of(call.args[0]), c.of(call.args[1])
    dims = 2 if call.name == "max_unpool2d" else 3
    kept = len(x.axes) - dims
    _read_whole(c, *x.axes[kept:])
    for a, b in zip(x.axes, index.axes, strict=True):
        c.unify(a, b)
    return Typing((*x.axes[:kept], *c.empty(result)[kept:]), (*x.null[:kept], *(True,) * dims))


@rule("fractional_max_pool2d", "fractional_max_pool3d")
def _fractional(c: Context, call: Any, result: Any) -> list[Typing]:
    """Windows of random sizes; `samples` [N, C, dims] has the random numbers."""
    x, samples = c.of(call.args[0]), c.of(argument(call, 3, "random_samples"))
    dims = samples.axes[-1].size
    kept = len(x.axes) - dims
    _read_whole(c, *x.axes[kept:], samples.axes[-1])
    for a, b in zip(x.axes[:kept][::-1], samples.axes[:-1][::-1], strict=False):
        c.unify(a, b)
    return [Typing((*x.axes[:kept], *c.empty(r)[kept:]), (*x.null[:kept], *(True,) * dims)) for r in result]


@rule("conv_tbc")
def _time_batch_channel(c: Context, call: Any, result: Any) -> Typing:
    """A convolution over time of [T, N, C] with a weight [taps, C, D]."""
    x, w, bias = (c.of(t) for t in call.args[:3])
    freeze(w.axes[0], KERNEL)
    c.contract(x.axes[2], w.axes[1], x.null[2] or w.null[1])
    c.unify(bias.axes[0], w.axes[2])
    c.mark(GroupKind.CHANNEL, w.axes[2])
    time = _places(c, result.shape[0])
    c.macs(time, x.axes[1], w.axes[2], *w.axes[:2])
    c.freeze(x.axes[0], "spatial position")
    return Typing((time, x.axes[1], w.axes[2]), (True, False, w.null[2] and bias.null[0]))


@contracts_within("torchvision::deform_conv2d")
def _over_inputs(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield ((1, 1),)


@contracts_within("conv_tbc")
def _over_channels(op: RecordedOp) -> Iterator[tuple[Place, ...]]:
    yield (0, 2), (1, 1)
