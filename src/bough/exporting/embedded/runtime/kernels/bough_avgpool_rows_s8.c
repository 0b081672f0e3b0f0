#include "bough_kernels.h"
#include "bough_rows.h"

arm_cmsis_nn_status bough_avgpool_rows_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *params, const cmsis_nn_dims *input_dims, const int8_t *input,
    const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output, int32_t backward)
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
            arm_avgpool_s8(ctx, &row_params, &row_input, input + row.first * input_dims->w * input_dims->c, filter_dims,
                           &row_output, output + row.y * output_dims->w * output_dims->c);
        if (status != ARM_CMSIS_NN_SUCCESS) {
            return status;
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}
