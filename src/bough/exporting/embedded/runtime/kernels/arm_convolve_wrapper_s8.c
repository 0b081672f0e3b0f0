#include "arm_nnfunctions.h"
#include "bough_block.h"
#include "bough_window.h"

#include <stddef.h>

/* `count` runs of `length` values that lie one after another, and the steps from one run to the next. */
typedef struct {
    int32_t count;
    int32_t length;
    int32_t input_step;
    int32_t weight_step;
} bough_runs;

/* Add (inputs + offset) * weights to the sums of `count` channels; a call of its own, so that its loops have the registers to
 * themselves. */
static BOUGH_NOINLINE void add_runs(
    const bough_runs *runs, const int8_t *input, const int8_t *weight, int32_t channel_step, int32_t offset, int32_t *sums,
    int32_t count)
{
    const int32_t length = runs->length, input_step = runs->input_step, weight_step = runs->weight_step - length;
    const int32_t *const last = sums + count;
    for (; sums < last; sums++) {
        const int8_t *from = input, *w = weight;
        int32_t sum = *sums;
        for (int32_t i = runs->count; i > 0; i--) {
            const int8_t *const end = from + length;
            for (const int8_t *x = from; x < end; x++) {
                sum += (*x + offset) * *w++;
            }
            from += input_step;
            w += weight_step;
        }
        *sums = sum;
        weight += channel_step;
    }
}

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
    const int32_t filter_row = filter_dims->w * depth, filter_size = filter_dims->h * filter_row;
    const int32_t joined = p->dilation.w == 1 && groups == 1; /* the taps of a row lie one after another */
    const int32_t row_step = p->dilation.h * input_dims->w * input_dims->c;
    bough_runs runs;
    runs.input_step = joined ? row_step : p->dilation.w * input_dims->c;
    runs.weight_step = joined ? filter_row : depth;
    (void)ctx;
    (void)bias_dims;
    for (int32_t n = 0; n < input_dims->n; n++) {
        for (int32_t y = 0; y < output_dims->h; y++) {
            const int32_t top = y * p->stride.h - p->padding.h;
            const bough_taps rows = bough_taps_of(top, p->dilation.h, filter_dims->h, input_dims->h);
            for (int32_t x = 0; x < output_dims->w; x++) {
                const int32_t left = x * p->stride.w - p->padding.w;
                const bough_taps columns = bough_taps_of(left, p->dilation.w, filter_dims->w, input_dims->w);
                const int32_t width = columns.end - columns.first, height = width > 0 ? rows.end - rows.first : 0;
                runs.count = joined ? height : width;
                runs.length = joined ? width * depth : depth;
                const int32_t row = n * input_dims->h + top + rows.first * p->dilation.h;
                const int32_t from = (row * input_dims->w + left + columns.first * p->dilation.w) * input_dims->c;
                const int32_t by = rows.first * filter_row + columns.first * depth;
                int32_t c = 0;
                while (c < output_dims->c) {
                    const int32_t group = c / per_group, count = bough_block_of((group + 1) * per_group - c);
                    int32_t sums[BOUGH_BLOCK];
                    const int8_t *input = input_data + from + group * depth;
                    const int8_t *weight = filter_data + by + c * filter_size;
                    bough_begin(sums, count, bias_data ? bias_data + c : NULL);
                    for (int32_t i = 0; i < (joined ? 1 : height); i++) {
                        add_runs(&runs, input + i * row_step, weight + i * filter_row, filter_size, p->input_offset, sums, count);
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
