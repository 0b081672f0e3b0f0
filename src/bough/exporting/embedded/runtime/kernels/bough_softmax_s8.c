#include "bough_kernels.h"

void bough_softmax_s8(const int8_t *input, int32_t rows, int32_t columns, const int32_t *table, int8_t *output)
{
    for (int32_t row = 0; row < rows; row++) {
        int32_t largest = INT8_MIN;
        int64_t sum = 0;
        for (int32_t i = 0; i < columns; i++) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < columns; i++) {
            sum += table[largest - input[i]];
        }
        for (int32_t i = 0; i < columns; i++) {
            const int64_t share = ((int64_t)table[largest - input[i]] * 256 + sum / 2) / sum;
            output[i] = (int8_t)(share > 255 ? INT8_MAX : share - 128);
        }
        input += columns;
        output += columns;
    }
}
