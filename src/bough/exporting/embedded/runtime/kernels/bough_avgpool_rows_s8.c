#include "bough_kernels.h"
#include "bough_rows.h"

arm_cmsis_nn_status bough_avgpool_rows_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *input_dims, const int8_t *input,
    const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward)
{
    return bough_pool_rows(arm_avgpool_s8, ctx, params, input_dims, input, filter_dims, output_dims, output, backward);
}
