#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"

/* Weights are [out, kh, kw, in / groups]. */
arm_cmsis_nn_status arm_convolve_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_conv_params *conv_params,
    const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims, const int8_t *input_data,
    const cmsis_nn_dims *filter_dims, const int8_t *filter_data, const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
    const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const int32_t depth = filter_dims->c;
    const int32_t per_group = output_dims->c / (input_dims->c / depth);
    const int32_t offset = conv_params->input_offset;
    (void)ctx;
    (void)bias_dims;
    for (int32_t n = 0; n < input_dims->n; n++) {
        for (int32_t y = 0; y < output_dims->h; y++) {
            const int32_t top = y * conv_params->stride.h - conv_params->padding.h;
            for (int32_t x = 0; x < output_dims->w; x++) {
                const int32_t left = x * conv_params->stride.w - conv_params->padding.w;
                for (int32_t c = 0; c < output_dims->c; c++) {
                    const int8_t *weight = filter_data + c * filter_dims->h * filter_dims->w * depth;
                    const int32_t first = c / per_group * depth;
                    int32_t sum = bias_data ? bias_data[c] : 0;
                    for (int32_t i = 0; i < filter_dims->h; i++) {
                        const int32_t row = top + i * conv_params->dilation.h;
                        if (row < 0 || row >= input_dims->h) {
                            continue;
                        }
                        for (int32_t j = 0; j < filter_dims->w; j++) {
                            const int32_t column = left + j * conv_params->dilation.w;
                            if (column < 0 || column >= input_dims->w) {
                                continue;
                            }
                            const int8_t *from =
                                input_data + ((n * input_dims->h + row) * input_dims->w + column) * input_dims->c + first;
                            const int8_t *by = weight + (i * filter_dims->w + j) * depth;
                            for (int32_t k = 0; k < depth; k++) {
                                sum += (from[k] + offset) * by[k];
                            }
                        }
                    }
                    sum = bough_requantize(sum, quant_params->multiplier[c], quant_params->shift[c]);
                    *output_data++ = bough_clamp(
                        sum + conv_params->output_offset, conv_params->activation.min, conv_params->activation.max);
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
