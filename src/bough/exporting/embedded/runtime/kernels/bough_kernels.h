/* Kernels that CMSIS-NN has no counterpart of, and calls of its kernels row by row. */
#ifndef BOUGH_KERNELS_H
#define BOUGH_KERNELS_H

#include "arm_nnfunctions.h"

enum { BOUGH_AXES = 6 };

/* A copy between strided places over at most BOUGH_AXES axes, the innermost last. */
typedef struct {
    int32_t axes;
    int32_t dims[BOUGH_AXES];
    int32_t in_strides[BOUGH_AXES];
    int32_t out_strides[BOUGH_AXES];
    int32_t start_in;
    int32_t start_out;
} bough_copy;

void bough_copy_s8(const bough_copy *copy, const int8_t *input, int8_t *output);

/* output = table[input + 128] */
void bough_lookup_s8(const int8_t *input, const int8_t *table, int32_t size, int8_t *output);

/* The mean over the middle axis of [outer, count, inner]; multiplier and shift include the division by count. */
typedef struct {
    int32_t outer;
    int32_t count;
    int32_t inner;
    int32_t input_offset;
    int32_t output_offset;
    int32_t multiplier;
    int32_t shift;
} bough_mean;

void bough_mean_s8(const bough_mean *mean, const int8_t *input, int8_t *output);

/* Softmax of each row; table[d] is exp(-d * scale) * 2^23. The output has scale 1/256 and zero point -128. */
void bough_softmax_s8(const int8_t *input, int32_t rows, int32_t columns, const int32_t *table, int8_t *output);

/* [rows, depth] x [depth, columns] for each of two batch axes; strides are those of (batch, batch, row or column, depth). The
 * output is [batch, batch, rows, columns]. */
typedef struct {
    int32_t batches[2];
    int32_t rows;
    int32_t columns;
    int32_t depth;
    int32_t left_strides[4];
    int32_t right_strides[4];
    int32_t left_offset;
    int32_t right_offset;
    int32_t output_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t low;
    int32_t high;
} bough_matmul;

void bough_matmul_s8(const bough_matmul *matmul, const int8_t *left, const int8_t *right, int8_t *output);

/* Normalization of each row; epsilon is in units of columns^2 * scale^2. */
typedef struct {
    int32_t rows;
    int32_t columns;
    int64_t epsilon;
    const int16_t *weight;
    const int32_t *bias;
    int32_t output_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t low;
    int32_t high;
} bough_layer_norm;

void bough_layer_norm_s8(const bough_layer_norm *norm, const int8_t *input, int8_t *output);

/* Linear interpolation; per row and column of the output: lower index, upper index, weight of the upper one in 1/2048. */
void bough_resize_s8(const cmsis_nn_dims *input_dims, const int8_t *input, const int16_t *rows, const int16_t *columns,
                     const cmsis_nn_dims *output_dims, int8_t *output);

/* Kernels called once for each row of the output, from the last to the first if `backward`. The output may then lie over the
 * input at the distance that the arena planner has allowed for. */
arm_cmsis_nn_status bough_convolve_rows_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_conv_params *params, const cmsis_nn_per_channel_quant_params *quant,
    const cmsis_nn_dims *input_dims, const int8_t *input, const cmsis_nn_dims *filter_dims, const int8_t *filter,
    const cmsis_nn_dims *bias_dims, const int32_t *bias, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward);

arm_cmsis_nn_status bough_depthwise_rows_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *params, const cmsis_nn_per_channel_quant_params *quant,
    const cmsis_nn_dims *input_dims, const int8_t *input, const cmsis_nn_dims *filter_dims, const int8_t *filter,
    const cmsis_nn_dims *bias_dims, const int32_t *bias, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward);

arm_cmsis_nn_status bough_avgpool_rows_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *input_dims, const int8_t *input,
    const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward);

arm_cmsis_nn_status bough_max_pool_rows_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *input_dims, const int8_t *input,
    const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward);

#endif
