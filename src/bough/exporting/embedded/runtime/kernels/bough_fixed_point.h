/* Scaling of 32-bit accumulators by a multiplier and a shift, and clamping. */
#ifndef BOUGH_FIXED_POINT_H
#define BOUGH_FIXED_POINT_H

#include <stdint.h>

/* value * multiplier * 2^(shift - 31): the product rounds halves up, the right shift rounds halves away from zero. */
static inline int32_t bough_requantize(int32_t value, int32_t multiplier, int32_t shift)
{
    const int64_t product = (int64_t)(shift > 0 ? value * (int32_t)(1L << shift) : value) * multiplier;
    const int32_t high = (int32_t)((product + (INT64_C(1) << 30)) >> 31);
    if (shift >= 0) {
        return high;
    }
    const int32_t below = high + (high >> 31); /* one less if negative, so that rounding a half up rounds it away from zero */
    return ((below >> (-shift - 1)) + 1) >> 1;
}

static inline int8_t bough_clamp(int32_t value, int32_t low, int32_t high)
{
    return (int8_t)(value < low ? low : value > high ? high : value);
}

#endif
