/* Run the model on the recorded inputs and compare with the recorded outputs, byte by byte. Exit status 0 if all are equal. */
#include "model.h"
#include "platform.h"
#include "vectors.h"

static int8_t output[MODEL_OUTPUT_BYTES];

static int32_t largest(const int8_t *values, int32_t size)
{
    int32_t best = 0;
    for (int32_t i = 1; i < size; i++) {
        best = values[i] > values[best] ? i : best;
    }
    return best;
}

int main(void)
{
    int32_t equal = 0, agreeing = 0, difference = 0;
    uint32_t ticks = 0;
    for (int32_t i = 0; i < VECTORS; i++) {
        const int8_t *expected = vector_outputs + i * MODEL_OUTPUT_BYTES;
        int32_t worst = 0;
        const uint32_t start = platform_ticks();
        const int status = vector_run(vector_inputs + i * MODEL_INPUT_BYTES, output);
        ticks += platform_ticks() - start;
        if (status != 0) {
            platform_print("model_run failed with status ", status, "\n");
            platform_exit(2);
        }
        for (int32_t j = 0; j < MODEL_OUTPUT_BYTES; j++) {
            const int32_t apart = output[j] > expected[j] ? output[j] - expected[j] : expected[j] - output[j];
            worst = apart > worst ? apart : worst;
        }
        equal += worst == 0;
        agreeing += largest(output, MODEL_OUTPUT_BYTES) == largest(expected, MODEL_OUTPUT_BYTES);
        difference = worst > difference ? worst : difference;
    }
    platform_print("runs ", VECTORS, "\n");
    platform_print("equal ", equal, "\n");
    platform_print("argmax_equal ", agreeing, "\n");
    platform_print("largest_difference ", difference, "\n");
    platform_print("ticks_per_run ", (int32_t)(ticks / VECTORS), "\n");
    platform_exit(equal == VECTORS ? 0 : 1);
    return 0;
}
