"""One array of shifts for all layers of a program.

A scale is multiplier * 2**(shift - 31) with a multiplier of 31 bits, of which 16 decide an int8 result. So all layers can take
the shift of the largest scale, with smaller multipliers, and their arrays of shifts become the beginnings of one array.
"""

from __future__ import annotations

import numpy as np

from bough.exporting.embedded.program import Conv, FullyConnected, Program, Requantization

_SPARE = 14  # bits that a multiplier may lose: 2**-17 of a result is left as the error of rounding it


def share_shifts(program: Program) -> None:
    """Give the layers of a program one shift where their multipliers keep enough bits, in place; `program.shifts` holds it.

    Layers that scale up, or down by more than 2**14 times as much as the largest scale, keep shifts of their own.
    """
    layers = [op for op in program.ops if isinstance(op, (Conv, FullyConnected)) and _scales_down(op.factors)]
    used = [op.factors.shift[op.factors.multiplier > 0] for op in layers]
    common = max((int(shift.max()) for shift in used if shift.size), default=0)
    for op, shift in zip(layers, used, strict=True):
        if shift.size and common - int(shift.min()) > _SPARE:
            continue
        lost = np.where(op.factors.multiplier > 0, common - op.factors.shift, 0).astype(np.int64)
        rounded = (op.factors.multiplier.astype(np.int64) + (1 << lost >> 1)) >> lost
        channels = len(rounded)
        if channels > len(program.shifts):
            program.shifts = np.full(channels, common, np.int32)
        op.factors = Requantization(rounded.astype(np.int32), np.full(channels, common, np.int32))


def ignore_scales(program: Program) -> None:
    """Let all layers share their shifts, whatever their scales, in place: of such a program only sizes are true."""
    layers = [op for op in program.ops if isinstance(op, (Conv, FullyConnected))]
    program.shifts = np.zeros(max((len(op.factors.shift) for op in layers), default=0), np.int32)
    for op in layers:
        op.factors = Requantization(op.factors.multiplier, program.shifts[: len(op.factors.shift)])


def _scales_down(factors: Requantization) -> bool:
    return bool((factors.shift <= 0).all())
