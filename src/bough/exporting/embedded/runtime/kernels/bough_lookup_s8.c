#include "bough_kernels.h"

void bough_lookup_s8(const int8_t *input, const int8_t *table, int32_t size, int8_t *output)
{
    for (int32_t i = 0; i < size; i++) {
        output[i] = table[input[i] + 128];
    }
}
