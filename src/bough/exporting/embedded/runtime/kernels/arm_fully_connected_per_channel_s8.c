#include "arm_nnfunctions.h"
#include "bough_fixed_point.h"

/* filter_dims->n is the number of inputs, output_dims->c that of outputs; weights are [out, in]. */
arm_cmsis_nn_status arm_fully_connected_per_channel_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *fc_params,
    const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims, const int8_t *input_data,
    const cmsis_nn_dims *filter_dims, const int8_t *filter_data, const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
    const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const int32_t depth = filter_dims->n;
    (void)ctx;
    (void)bias_dims;
    for (int32_t n = 0; n < input_dims->n; n++) {
        const int8_t *weight = filter_data;
        for (int32_t c = 0; c < output_dims->c; c++) {
            int32_t sum = bias_data ? bias_data[c] : 0;
            for (int32_t k = 0; k < depth; k++) {
                sum += (input_data[k] + fc_params->input_offset) * (*weight++ + fc_params->filter_offset);
            }
            sum = bough_requantize(sum, quant_params->multiplier[c], quant_params->shift[c]);
            *output_data++ =
                bough_clamp(sum + fc_params->output_offset, fc_params->activation.min, fc_params->activation.max);
        }
        input_data += depth;
    }
    return ARM_CMSIS_NN_SUCCESS;
}
