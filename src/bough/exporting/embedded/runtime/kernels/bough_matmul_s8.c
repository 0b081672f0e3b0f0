#include "bough_fixed_point.h"
#include "bough_kernels.h"

static void product(const bough_matmul *m, const int8_t *left, const int8_t *right, int8_t *output)
{
    for (int32_t row = 0; row < m->rows; row++) {
        for (int32_t column = 0; column < m->columns; column++) {
            const int8_t *a = left + row * m->left_strides[2];
            const int8_t *b = right + column * m->right_strides[2];
            int32_t sum = 0;
            for (int32_t k = 0; k < m->depth; k++) {
                sum += (*a + m->left_offset) * (*b + m->right_offset);
                a += m->left_strides[3];
                b += m->right_strides[3];
            }
            sum = bough_requantize(sum, m->multiplier, m->shift);
            *output++ = bough_clamp(sum + m->output_offset, m->low, m->high);
        }
    }
}

void bough_matmul_s8(const bough_matmul *matmul, const int8_t *left, const int8_t *right, int8_t *output)
{
    for (int32_t i = 0; i < matmul->batches[0]; i++) {
        for (int32_t j = 0; j < matmul->batches[1]; j++) {
            product(matmul, left + i * matmul->left_strides[0] + j * matmul->left_strides[1],
                    right + i * matmul->right_strides[0] + j * matmul->right_strides[1], output);
            output += matmul->rows * matmul->columns;
        }
    }
}
