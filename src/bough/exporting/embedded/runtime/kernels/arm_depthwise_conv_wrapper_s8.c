#include "arm_nnfunctions.h"
#include "bough_block.h"
#include "bough_window.h"

#include <stddef.h>

enum { TAPS = 3 }; /* of most depthwise convolutions in a row */

/* Add TAPS taps of a row to the sums of `count` channels, each of which reads the input channel of its own. */
static inline void add_taps(
    int32_t *sums, int32_t count, const int8_t *input, int32_t input_step, const int8_t *weight, int32_t weight_step, int32_t offset)
{
    for (int32_t k = 0; k < count; k++) {
        const int8_t *x = input + k, *w = weight + k;
        int32_t sum = sums[k] + (x[0] + offset) * w[0];
        sum += (x[input_step] + offset) * w[weight_step];
        sums[k] = sum + (x[2 * input_step] + offset) * w[2 * weight_step];
    }
}

/* Add one tap to the sums of `count` channels, the first of which is `channel`. */
static inline void add_tap(
    int32_t *sums, int32_t count, const int8_t *input, const int8_t *weight, int32_t offset, int32_t channel, int32_t ch_mult)
{
    for (int32_t k = 0; k < count; k++) {
        sums[k] += (input[(channel + k) / ch_mult] + offset) * weight[k];
    }
}

/* Weights are [1, kh, kw, out]; output channel c reads input channel c / ch_mult. */
arm_cmsis_nn_status arm_depthwise_conv_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *dw_conv_params,
    const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims, const int8_t *input_data,
    const cmsis_nn_dims *filter_dims, const int8_t *filter_data, const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
    const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const cmsis_nn_dw_conv_params *p = dw_conv_params;
    const int32_t channels = output_dims->c;
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
                for (int32_t c = 0; c < channels; c += BOUGH_BLOCK) {
                    const int32_t count = bough_block_of(channels - c);
                    int32_t sums[BOUGH_BLOCK];
                    int32_t from_row = from;
                    bough_begin(sums, count, bias_data ? bias_data + c : NULL);
                    for (int32_t i = rows.first; i < rows.end; i++) {
                        const int8_t *at = input_data + from_row;
                        const int8_t *weight = filter_data + (i * filter_dims->w + columns.first) * channels + c;
                        int32_t j = columns.first;
                        for (; p->ch_mult == 1 && j + TAPS <= columns.end; j += TAPS) {
                            add_taps(sums, count, at + c, column_step, weight, channels, p->input_offset);
                            at += TAPS * column_step;
                            weight += TAPS * channels;
                        }
                        for (; j < columns.end; j++) {
                            add_tap(sums, count, at, weight, p->input_offset, c, p->ch_mult);
                            at += column_step;
                            weight += channels;
                        }
                        from_row += row_step;
                    }
                    bough_store(sums, count, quant_params, c, p->output_offset, p->activation, output_data);
                    output_data += count;
                }
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
