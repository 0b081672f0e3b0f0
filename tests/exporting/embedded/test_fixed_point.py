"""Fixed-point scaling against exact rational arithmetic."""

from fractions import Fraction
from math import floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bough.exporting.embedded.fixed_point import factors, quantized, requantize
from bough.exporting.embedded.program import Quantization


def _half_away(x: Fraction) -> int:
    return floor(x + Fraction(1, 2)) if x >= 0 else -floor(-x + Fraction(1, 2))


@given(st.integers(-(2**30), 2**30), st.integers(2**30, 2**31 - 1), st.integers(-20, 0))
def test_requantize_rounds_the_product_half_up_and_the_shift_half_away_from_zero(value, multiplier, shift):
    high = floor(Fraction(value * multiplier, 2**31) + Fraction(1, 2))
    assert requantize(value, multiplier, shift) == _half_away(Fraction(high, 2**-shift))


@given(st.floats(1e-7, 100.0), st.integers(-(2**20), 2**20))
def test_factors_scale_by_the_real_number_within_one(scale, value):
    made = factors([scale])
    if abs(value * scale) < 2**30:
        assert abs(int(requantize(value, made.multiplier, made.shift)[0]) - value * scale) <= 1.0 + abs(value * scale) * 2**-29


def test_quantized_saturates_and_keeps_zero():
    assert quantized([-1e9, 0.0, 1e9], Quantization(0.1, 3)).tolist() == [-128, 3, 127]


def test_a_scale_of_zero_gives_zero():
    made = factors([0.0])
    assert requantize(np.array([12345]), made.multiplier, made.shift).tolist() == [0]
