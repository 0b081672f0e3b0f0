#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"

/* Weights are [1, kh, kw, out]; output channel c reads input channel c / ch_mult. */
arm_cmsis_nn_status arm_depthwise_conv_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *dw_conv_params,
    const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims, const int8_t *input_data,
    const cmsis_nn_dims *filter_dims, const int8_t *filter_data, const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
    const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const cmsis_nn_dw_conv_params *p = dw_conv_params;
    const int32_t channels = output_dims->c;
    (void)ctx;
    (void)bias_dims;
    for (int32_t n = 0; n < input_dims->n; n++) {
        for (int32_t y = 0; y < output_dims->h; y++) {
            const int32_t top = y * p->stride.h - p->padding.h;
            for (int32_t x = 0; x < output_dims->w; x++) {
                const int32_t left = x * p->stride.w - p->padding.w;
                for (int32_t c = 0; c < channels; c++) {
                    int32_t sum = bias_data ? bias_data[c] : 0;
                    for (int32_t i = 0; i < filter_dims->h; i++) {
                        const int32_t row = top + i * p->dilation.h;
                        if (row < 0 || row >= input_dims->h) {
                            continue;
                        }
                        for (int32_t j = 0; j < filter_dims->w; j++) {
                            const int32_t column = left + j * p->dilation.w;
                            if (column < 0 || column >= input_dims->w) {
                                continue;
                            }
                            const int32_t place = (n * input_dims->h + row) * input_dims->w + column;
                            const int32_t value = input_data[place * input_dims->c + c / p->ch_mult] + p->input_offset;
                            sum += value * filter_data[(i * filter_dims->w + j) * channels + c];
                        }
                    }
                    sum = bough_requantize(sum, quant_params->multiplier[c], quant_params->shift[c]);
                    *output_data++ = bough_clamp(sum + p->output_offset, p->activation.min, p->activation.max);
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
