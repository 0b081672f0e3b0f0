/* The sums of a few channels at one place: one tight loop computes them and another scales them, so that each has its values in
 * registers. */
#ifndef BOUGH_BLOCK_H
#define BOUGH_BLOCK_H

#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"

#if defined(__GNUC__)
#define BOUGH_NOINLINE __attribute__((noinline))
#else
#define BOUGH_NOINLINE
#endif

enum { BOUGH_BLOCK = 16 };

static inline int32_t bough_block_of(int32_t left)
{
    return left < BOUGH_BLOCK ? left : BOUGH_BLOCK;
}

/* Begin the sums of `count` channels with their biases; `bias` may be NULL. */
static inline void bough_begin(int32_t *sums, int32_t count, const int32_t *bias)
{
    if (bias) {
        for (int32_t k = 0; k < count; k++) {
            sums[k] = bias[k];
        }
    } else {
        for (int32_t k = 0; k < count; k++) {
            sums[k] = 0;
        }
    }
}

/* Scale and store the sums of `count` channels, the first of which is `channel`. */
static inline void bough_store(
    const int32_t *sums, int32_t count, const cmsis_nn_per_channel_quant_params *quant, int32_t channel, int32_t offset,
    cmsis_nn_activation range, int8_t *output)
{
    const int32_t *multiplier = quant->multiplier + channel, *shift = quant->shift + channel;
    for (int32_t k = 0; k < count; k++) {
        output[k] = bough_clamp(bough_requantize(sums[k], multiplier[k], shift[k]) + offset, range.min, range.max);
    }
}

#endif
