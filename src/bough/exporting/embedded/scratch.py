"""Working memory that the optimized kernels of CMSIS-NN need, and where it lies in the arena while an op runs.

The portable kernels need none. The sizes are those of the library's own `..._get_buffer_size` functions: one set for cores
without vector extension (with or without DSP instructions), one for cores with it (Helium, MVE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bough.exporting.embedded import program as p
from bough.exporting.embedded.arena import WHOLE, Arena, lifetimes

_ALIGNMENT = 16
_BLOCK = 124  # channels that a depthwise convolution takes at once with MVE


@dataclass(frozen=True, slots=True)
class Scratch:
    """Offset and size of the working memory of each op that needs some, and the arena's size with them."""

    places: Mapping[int, tuple[int, int]]
    arena: int


def scratch_size(op: p.Op, *, vector: bool) -> int:
    """Return bytes of working memory of one op in CMSIS-NN, with or without the vector extension."""
    if isinstance(op, p.Conv):
        return _depthwise(op, vector) if op.depthwise else _convolution(op, vector)
    if isinstance(op, p.FullyConnected):
        return 4 * op.weight.shape[0] if vector else 0
    if isinstance(op, p.Pool) and not op.maximum:
        return 0 if vector else 4 * op.in_dims[3]
    return 0


def _convolution(op: p.Conv, vector: bool) -> int:
    window, channels = op.window, op.in_dims[3]
    pointwise = window.kernel == (1, 1) and window.padding == (0, 0) and op.weight.shape[3] == channels
    if pointwise and window.dilation == (1, 1):
        return 0
    length = channels * window.kernel[0] * window.kernel[1]
    return 4 * 16 * -(-length // 16) if vector else 2 * 2 * 4 * -(-length // 4)


def _depthwise(op: p.Conv, vector: bool) -> int:
    window, channels, results = op.window, op.in_dims[3], op.out_dims[3]
    kernel = window.kernel[0] * window.kernel[1]
    size = 0
    if channels == results and op.in_dims[0] == 1 and window.dilation == (1, 1):
        if vector:
            size = 4 * _BLOCK * kernel
        elif window.kernel != (3, 3) or max(window.padding) > 1:
            size = 2 * channels * kernel
    if vector and channels == 1:  # run as an ordinary convolution with transposed weights
        size = max(size, 4 * 16 * -(-kernel // 16) + results * kernel)
    return size


def place_scratch(program: p.Program, arena: Arena, *, vector: bool) -> Scratch:
    """Return where working memory fits beside the tensors in use, in the first gap; the arena grows where there is none."""
    blocks = lifetimes(program)
    places, end = {}, arena.size
    for i, op in enumerate(program.ops):
        size = scratch_size(op, vector=vector)
        if size:
            used = [(arena.offsets[k], b.size) for k, b in blocks.items() if b.first <= i <= b.last]
            places[i] = (_first_gap(used, size), size)
            end = max(end, sum(places[i]))
    return Scratch(places, -(-end // WHOLE) * WHOLE)


def _first_gap(used: Sequence[tuple[int, int]], size: int) -> int:
    start = 0
    for offset, length in sorted(used):
        if start + size <= offset:
            break
        start = max(start, -(-(offset + length) // _ALIGNMENT) * _ALIGNMENT)
    return start
