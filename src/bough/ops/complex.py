"""Complex numbers, and Fourier transforms."""

from __future__ import annotations

from typing import Any

from bough.ops.context import Context, Typing
from bough.ops.pointwise import pointwise
from bough.ops.spec import rule

rule("polar", "complex")(pointwise)


@rule("view_as_real")
def _as_real(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    return Typing((*x.axes, c.data(2, "real and imaginary")), (*x.null, True), x.weight)


@rule("view_as_complex")
def _as_complex(c: Context, call: Any, result: Any) -> Typing:
    """Both parts of a number stay or leave together: the units are the pairs."""
    x = c.of(call.args[0])
    c.freeze(x.axes[-1], "real and imaginary")
    return Typing(x.axes[:-1], x.null[:-1], x.weight)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _fourier(c: Context, call: Any, result: Any) -> Typing:
    """Each result along a transformed axis is made of all its units; along the others nothing is mixed."""
    x = c.of(call.args[0])
    dims = {d % len(x.axes) for d in call.args[1]}
    for d in dims:
        c.freeze(x.axes[d], "mixed by a Fourier transform")
    axes = tuple(c.data(result.shape[d], "frequency") if d in dims else a for d, a in enumerate(x.axes))
    return Typing(axes, x.null)
