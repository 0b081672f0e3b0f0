#include "arm_nnfunctions.h"
#include "bough_block.h"
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
    const int32_t groups = input_dims->c / depth, per_group = output_dims->c / groups;
    const int32_t offset = p->input_offset;
    const int32_t column_step = p->dilation.w * input_dims->c;
    const int32_t row_step = p->dilation.h * input_dims->w * input_dims->c;
    const int32_t filter_row = filter_dims->w * depth, filter_size = filter_dims->h * filter_row;
    const int32_t joined = p->dilation.w == 1 && groups == 1; /* the taps of a row lie one after another */
    (void)ctx;
    (void)bias_dims;
    for (int32_t n = 0; n < input_dims->n; n++) {
        for (int32_t y = 0; y < output_dims->h; y++) {
            const int32_t top = y * p->stride.h - p->padding.h;
            const bough_taps rows = bough_taps_of(top, p->dilation.h, filter_dims->h, input_dims->h);
            for (int32_t x = 0; x < output_dims->w; x++) {
                const int32_t left = x * p->stride.w - p->padding.w;
                const bough_taps columns = bough_taps_of(left, p->dilation.w, filter_dims->w, input_dims->w);
                const int32_t taps = columns.end - columns.first;
                const int32_t row = n * input_dims->h + top + rows.first * p->dilation.h;
                const int32_t from = (row * input_dims->w + left + columns.first * p->dilation.w) * input_dims->c;
                const int32_t by = rows.first * filter_row + columns.first * depth;
                int32_t c = 0;
                while (c < output_dims->c) {
                    const int32_t group = c / per_group, count = bough_block_of((group + 1) * per_group - c);
                    int32_t sums[BOUGH_BLOCK];
                    for (int32_t k = 0; k < count; k++) {
                        int32_t sum = bias_data ? bias_data[c + k] : 0;
                        int32_t at = from + group * depth, weight = by + (c + k) * filter_size;
                        for (int32_t i = rows.first; i < rows.end; i++) {
                            if (joined) {
                                sum = bough_dot(input_data + at, filter_data + weight, taps * depth, offset, sum);
                            } else {
                                for (int32_t j = 0; j < taps; j++) {
                                    sum = bough_dot(
                                        input_data + at + j * column_step, filter_data + weight + j * depth, depth, offset, sum);
                                }
                            }
                            at += row_step;
                            weight += filter_row;
                        }
                        sums[k] = sum;
                    }
                    bough_store(sums, count, quant_params, c, p->output_offset, p->activation, output_data);
                    output_data += count;
                    c += count;
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
