#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"
#include "bough_window.h"

/* Weights are [1, kh, kw, out]; output channel c reads input channel c / ch_mult. */
arm_cmsis_nn_status arm_depthwise_conv_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *dw_conv_params,
    const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims, const int8_t *input_data,
    const cmsis_nn_dims *filter_dims, const int8_t *filter_data, const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
    const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const cmsis_nn_dw_conv_params *p = dw_conv_params;
    const int32_t channels = output_dims->c;
    const int32_t offset = p->input_offset;
    const int32_t column_step = p->dilation.w * input_dims->c;
    const int32_t row_step = p->dilation.h * input_dims->w * input_dims->c;
    (void)ctx;
    (void)bias_dims;
    for (int32_t n = 0; n < input_dims->n; n++) {
        for (int32_t y = 0; y < output_dims->h; y++) {
            const int32_t top = y * p->stride.h - p->padding.h;
            const bough_taps rows = bough_taps_of(top, p->dilation.h, filter_dims->h, input_dims->h);
            for (int32_t x = 0; x < output_dims->w; x++) {
                const int32_t left = x * p->stride.w - p->padding.w;
                const bough_taps columns = bough_taps_of(left, p->dilation.w, filter_dims->w, input_dims->w);
                const int32_t row = n * input_dims->h + top + rows.first * p->dilation.h;
                const int32_t from = (row * input_dims->w + left + columns.first * p->dilation.w) * input_dims->c;
                const int32_t by = (rows.first * filter_dims->w + columns.first) * channels;
                int32_t c = 0;
                for (int32_t k = 0; k < input_dims->c; k++) {
                    for (const int32_t end = c + p->ch_mult; c < end; c++) {
                        int32_t sum = bias_data ? bias_data[c] : 0;
                        int32_t from_row = from + k, by_row = by + c;
                        for (int32_t i = rows.first; i < rows.end; i++) {
                            int32_t at = from_row, weight = by_row;
                            for (int32_t j = columns.first; j < columns.end; j++) {
                                sum += (input_data[at] + offset) * filter_data[weight];
                                at += column_step;
                                weight += channels;
                            }
                            from_row += row_step;
                            by_row += filter_dims->w * channels;
                        }
                        sum = bough_requantize(sum, quant_params->multiplier[c], quant_params->shift[c]);
                        *output_data++ = bough_clamp(sum + p->output_offset, p->activation.min, p->activation.max);
                    }
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
