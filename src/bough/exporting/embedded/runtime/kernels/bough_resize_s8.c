#include "bough_kernels.h"

enum { UNIT = 2048, SHIFT = 22 };

void bough_resize_s8(const cmsis_nn_dims *input_dims, const int8_t *input, const int16_t *rows, const int16_t *columns,
                     const cmsis_nn_dims *output_dims, int8_t *output)
{
    const int32_t channels = input_dims->c, line = input_dims->w * channels;
    const int32_t height = output_dims->h, width = output_dims->w;
    for (int32_t n = 0; n < input_dims->n; n++) {
        const int8_t *image = input + n * input_dims->h * line;
        for (int32_t y = 0; y < height; y++) {
            const int8_t *upper = image + rows[y] * line, *lower = image + rows[height + y] * line;
            const int32_t down = rows[2 * height + y];
            for (int32_t x = 0; x < width; x++) {
                const int32_t left = columns[x] * channels, right = columns[width + x] * channels;
                const int32_t across = columns[2 * width + x];
                for (int32_t c = 0; c < channels; c++) {
                    const int32_t first = upper[left + c] * (UNIT - across) + upper[right + c] * across;
                    const int32_t second = lower[left + c] * (UNIT - across) + lower[right + c] * across;
                    const int32_t sum = first * (UNIT - down) + second * down;
                    *output++ = (int8_t)((sum + (int32_t)(1L << (SHIFT - 1))) >> SHIFT);
                }
            }
        }
    }
}
