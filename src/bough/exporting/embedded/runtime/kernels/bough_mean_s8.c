#include "bough_fixed_point.h"
#include "bough_kernels.h"

void bough_mean_s8(const bough_mean *mean, const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < mean->outer; i++) {
        for (int32_t k = 0; k < mean->inner; k++) {
            const int8_t *from = input + i * mean->count * mean->inner + k;
            int32_t sum = 0;
            for (int32_t j = 0; j < mean->count; j++) {
                sum += from[j * mean->inner] + mean->input_offset;
            }
            const int32_t scaled = bough_requantize(sum, mean->multiplier, mean->shift);
            *output++ = bough_clamp(scaled + mean->output_offset, INT8_MIN, INT8_MAX);
        }
    }
}
