/* The part of an image that one row of windows covers. */
#ifndef BOUGH_ROWS_H
#define BOUGH_ROWS_H

#include "arm_nnfunctions.h"

typedef struct {
    int32_t y;       /* row of the output */
    int32_t first;   /* first row of the input under it */
    int32_t height;  /* number of rows of the input under it */
    int32_t padding; /* rows of the windows above the input */
} bough_row;

static inline bough_row bough_row_of(int32_t index, int32_t rows, int32_t backward, int32_t input_height, int32_t stride,
                                     int32_t padding, int32_t reach)
{
    const int32_t y = backward ? rows - 1 - index : index;
    const int32_t top = y * stride - padding;
    const int32_t end = top + reach < input_height ? top + reach : input_height;
    bough_row row;
    row.y = y;
    row.first = top > 0 ? top : 0;
    row.height = end - row.first;
    row.padding = row.first - top;
    return row;
}

typedef arm_cmsis_nn_status (*bough_pool)(const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params,
                                          const cmsis_nn_dims *input_dims, const int8_t *input,
                                          const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output);

/* Pools row by row of the output, from the first row or from the last. */
static inline arm_cmsis_nn_status bough_pool_rows(
    bough_pool pool, const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *input_dims,
    const int8_t *input, const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward)
{
    cmsis_nn_pool_params row_params = *params;
    cmsis_nn_dims row_input = *input_dims, row_output = *output_dims;
    row_output.h = 1;
    for (int32_t i = 0; i < output_dims->h; i++) {
        const bough_row row =
            bough_row_of(i, output_dims->h, backward, input_dims->h, params->stride.h, params->padding.h, filter_dims->h);
        row_params.padding.h = row.padding;
        row_input.h = row.height;
        const arm_cmsis_nn_status status =
            pool(ctx, &row_params, &row_input, input + row.first * input_dims->w * input_dims->c, filter_dims, &row_output,
                 output + row.y * output_dims->w * output_dims->c);
        if (status != ARM_CMSIS_NN_SUCCESS) {
            return status;
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}

#endif
