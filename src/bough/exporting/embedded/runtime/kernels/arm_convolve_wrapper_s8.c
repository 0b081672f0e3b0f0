#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"
#include "bough_window.h"

/* Weights are [out, kh, kw, in / groups]. */
arm_cmsis_nn_status arm_convolve_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_conv_params *conv_params,
    const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims, const int8_t *input_data,
    const cmsis_nn_dims *filter_dims, const int8_t *filter_data, const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
    const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const cmsis_nn_conv_params *p = conv_params;
    const int32_t depth = filter_dims->c;
    const int32_t per_group = output_dims->c / (input_dims->c / depth);
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
                int32_t by = (rows.first * filter_dims->w + columns.first) * depth;
                for (int32_t c = 0; c < output_dims->c; c++) {
                    int32_t sum = bias_data ? bias_data[c] : 0;
                    int32_t from_row = from + c / per_group * depth, by_row = by;
                    for (int32_t i = rows.first; i < rows.end; i++) {
                        int32_t at = from_row, weight = by_row;
                        for (int32_t j = columns.first; j < columns.end; j++) {
                            for (int32_t k = 0; k < depth; k++) {
                                sum += (input_data[at + k] + offset) * filter_data[weight + k];
                            }
                            at += column_step;
                            weight += depth;
                        }
                        from_row += row_step;
                        by_row += filter_dims->w * depth;
                    }
                    by += filter_dims->h * filter_dims->w * depth;
                    sum = bough_requantize(sum, quant_params->multiplier[c], quant_params->shift[c]);
                    *output_data++ = bough_clamp(sum + p->output_offset, p->activation.min, p->activation.max);
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
