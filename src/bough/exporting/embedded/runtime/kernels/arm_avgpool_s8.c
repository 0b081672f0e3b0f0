#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"

/* Elements outside the input do not count; halves round away from zero. */
arm_cmsis_nn_status arm_avgpool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *pool_params, const cmsis_nn_dims *input_dims,
    const int8_t *input_data, const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)ctx;
    for (int32_t n = 0; n < input_dims->n; n++) {
        for (int32_t y = 0; y < output_dims->h; y++) {
            const int32_t top = y * pool_params->stride.h - pool_params->padding.h;
            for (int32_t x = 0; x < output_dims->w; x++) {
                const int32_t left = x * pool_params->stride.w - pool_params->padding.w;
                for (int32_t c = 0; c < output_dims->c; c++) {
                    int32_t sum = 0, count = 0;
                    for (int32_t row = top; row < top + filter_dims->h; row++) {
                        for (int32_t column = left; column < left + filter_dims->w; column++) {
                            if (row < 0 || row >= input_dims->h || column < 0 || column >= input_dims->w) {
                                continue;
                            }
                            const int32_t place = (n * input_dims->h + row) * input_dims->w + column;
                            const int32_t value = input_data[place * input_dims->c + c];
                            sum += value;
                            count++;
                        }
                    }
                    const int32_t half = count / 2;
                    const int32_t result = (sum > 0 ? sum + half : sum - half) / (count > 0 ? count : 1);
                    *output_data++ = bough_clamp(result, pool_params->activation.min, pool_params->activation.max);
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
