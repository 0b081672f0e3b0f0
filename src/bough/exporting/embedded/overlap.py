"""Where an op may write its result over its input: how far apart the two must start.

Kernels run row by row of the output (the C code calls them once a row where the two overlap). Going down the rows, row y may be
written where the input rows that later windows read do not lie; going up, likewise. This holds for any kernel, since a row
that is written never touches an input row that the same call or a later one reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bough.exporting.embedded import program as p


@dataclass(frozen=True, slots=True)
class Overlap:
    """Offsets at which an output may lie over an input that dies with the op.

    Attributes:
        forward: the output starts at least this many bytes before the input; rows run from the first to the last.
        backward: the output starts at least this many bytes after the input; rows run from the last to the first. None if
            the kernel cannot.
    """

    forward: int
    backward: int | None


def overlaps(op: p.Op) -> dict[int, Overlap]:
    """Return the inputs (by place) that the output of an op may overlap."""
    if isinstance(op, p.Lookup):
        return {0: Overlap(0, None)}
    if isinstance(op, p.Add | p.Mul):
        return {0: Overlap(0, None), **({1: Overlap(0, None)} if op.repeats == 1 else {})}
    if isinstance(op, p.Conv | p.Pool) and op.in_dims[0] == 1:
        found = _rows(op)
        return {} if found is None else {0: found}
    return {}


def _rows(op: p.Conv | p.Pool) -> Overlap | None:
    """Return the distances for calls row by row; None if a row of windows lies outside the input."""
    _, height, width, channels = op.in_dims
    _, rows, columns, results = op.out_dims
    window, in_row, out_row = op.window, width * channels, columns * results
    y = np.arange(rows)
    top = y * window.stride[0] - window.padding[0]
    bottom = top + (window.kernel[0] - 1) * window.dilation[0] + 1
    if (np.minimum(bottom, height) <= np.maximum(top, 0)).any():
        return None
    first = np.clip(top, 0, height) * in_row
    last = np.clip(bottom, 0, height) * in_row
    return Overlap(int(((y + 1) * out_row - first).max()), int((last - y * out_row).max()))
