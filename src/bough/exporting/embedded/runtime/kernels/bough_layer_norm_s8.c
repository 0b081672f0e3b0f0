#include "bough_fixed_point.h"
#include "bough_kernels.h"

static int64_t root(int64_t value)
{
    uint64_t rest = (uint64_t)value, result = 0, bit = UINT64_C(1) << 62;
    while (bit > rest) {
        bit >>= 2;
    }
    for (; bit != 0; bit >>= 2) {
        if (rest >= result + bit) {
            rest -= result + bit;
            result = (result >> 1) + bit;
        } else {
            result >>= 1;
        }
    }
    return (int64_t)result;
}

void bough_layer_norm_s8(const bough_layer_norm *norm, const int8_t *input, int8_t *output)
{
    for (int32_t row = 0; row < norm->rows; row++) {
        int32_t sum = 0;
        int64_t squares = 0;
        for (int32_t i = 0; i < norm->columns; i++) {
            sum += input[i];
            squares += input[i] * input[i];
        }
        /* 256 times the standard deviation, in units of columns * scale */
        const int64_t spread = norm->columns * squares - (int64_t)sum * sum + norm->epsilon;
        const int64_t found = root(spread << 16);
        const int64_t deviation = found > 0 ? found : 1;
        for (int32_t i = 0; i < norm->columns; i++) {
            const int64_t centred = (int64_t)norm->columns * input[i] - sum;
            const int64_t size = (65536 * (centred < 0 ? -centred : centred) + deviation / 2) / deviation;
            const int32_t unit = (int32_t)(centred < 0 ? -size : size);
            const int32_t scaled = bough_requantize(unit * norm->weight[i] + norm->bias[i], norm->multiplier, norm->shift);
            output[i] = bough_clamp(scaled + norm->output_offset, norm->low, norm->high);
        }
        input += norm->columns;
        output += norm->columns;
    }
}
