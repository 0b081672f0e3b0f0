/* Scaling of 32-bit accumulators by a multiplier and a shift, and clamping. */
#ifndef BOUGH_FIXED_POINT_H
#define BOUGH_FIXED_POINT_H

#include <stdint.h>

/* value * multiplier * 2^(shift - 31): the product rounds halves up, the right shift rounds halves away from zero. */
static inline int32_t bough_requantize(int32_t value, int32_t multiplier, int32_t shift)
{
    const int32_t left = shift > 0 ? shift : 0;
    const int32_t right = shift > 0 ? 0 : -shift;
    const int64_t product = (int64_t)(value * (int32_t)(1L << left)) * multiplier;
    const int32_t high = (int32_t)((product + (INT64_C(1) << 30)) >> 31);
    const int32_t mask = (int32_t)((INT64_C(1) << right) - 1);
    const int32_t threshold = (mask >> 1) + (high < 0 ? 1 : 0);
    return (high >> right) + ((high & mask) > threshold ? 1 : 0);
}

static inline int8_t bough_clamp(int32_t value, int32_t low, int32_t high)
{
    return (int8_t)(value < low ? low : value > high ? high : value);
}

#endif
