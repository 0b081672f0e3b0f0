"""Resizing of images: nearest by copies, bilinear by interpolation in integers."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.nn import functional

from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import Context, Value, image_dims, lowers
from bough.exporting.embedded.program import Resize
from bough.exporting.embedded.reading import argument

_UNIT = 2048  # of the weights of an interpolation


@lowers("upsample_nearest1d", "upsample_nearest2d")
def nearest(context: Context, node: fx.Node) -> Value:
    """Lower to copies where each element is repeated a whole number of times."""
    x = context.image(node, context.value(argument(node, 0)))
    shape = tuple(int(s) for s in node.meta["val"].shape)
    n, height, width, channels = image_dims(x.shape)
    _, rows, columns, _ = image_dims(shape)
    if rows % height or columns % width:
        raise context.refuse(node, f"{height}x{width} to {rows}x{columns} is not a whole factor; resize by whole factors")
    up, across = rows // height, columns // width
    tensor = context.tensor(node, math.prod(shape), x.quantization)
    row = columns * channels
    axes = [
        (n * height, width * channels, up * row), (up, 0, row), (width, channels, across * channels), (across, 0, channels),
        (channels, 1, 1),
    ]  # fmt: skip
    context.copy_strided(node, x.tensor, tensor, axes, (0, 0))
    return Value(tensor, shape, layout.channels_last(len(shape)))


@lowers("upsample_bilinear2d")
def bilinear(context: Context, node: fx.Node) -> Value:
    """Lower to integer interpolation; indices and weights are read off PyTorch's own resize of a ramp."""
    x = context.image(node, context.value(argument(node, 0)))
    shape = tuple(int(s) for s in node.meta["val"].shape)
    in_dims, out_dims = image_dims(x.shape), image_dims(shape)
    corners = bool(argument(node, 2))
    scales = argument(node, 3, "scale_factors")
    tensor = context.tensor(node, math.prod(shape), x.quantization)
    rows = _taps(in_dims[1], out_dims[1], corners, None if not isinstance(scales, (list, tuple)) else float(scales[0]))
    columns = _taps(in_dims[2], out_dims[2], corners, None if not isinstance(scales, (list, tuple)) else float(scales[1]))
    context.program.ops.append(Resize(context.source(node), (x.tensor,), tensor, in_dims, out_dims, rows, columns))
    return Value(tensor, shape, layout.channels_last(4))


def _taps(size: int, wanted: int, corners: bool, scale: float | None) -> NDArray[np.int16]:
    """Return lower index, upper index and weight of the upper one [3, wanted] along an axis."""
    ramp = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
    if scale is not None and math.floor(size * scale) == wanted:
        at = functional.interpolate(ramp, scale_factor=scale, mode="linear", align_corners=corners)
    else:
        at = functional.interpolate(ramp, size=wanted, mode="linear", align_corners=corners)
    place = at.reshape(-1).numpy()
    low = np.minimum(np.floor(place), size - 1)
    weight = np.round((place - low) * _UNIT)
    return np.stack([low, np.minimum(low + 1, size - 1), weight]).astype(np.int16)
