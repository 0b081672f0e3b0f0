/* The part of an image that one row of windows covers. */
#ifndef BOUGH_ROWS_H
#define BOUGH_ROWS_H

#include "arm_nnfunctions.h"

typedef struct {
    int32_t y;       /* row of the output */
    int32_t first;   /* first row of the input under it */
    int32_t height;  /* number of rows of the input under it */
    int32_t padding; /* rows of the windows above the input */
} bough_row;

static inline bough_row bough_row_of(int32_t index, int32_t rows, int32_t backward, int32_t input_height, int32_t stride,
                                     int32_t padding, int32_t reach)
{
    const int32_t y = backward ? rows - 1 - index : index;
    const int32_t top = y * stride - padding;
    const int32_t end = top + reach < input_height ? top + reach : input_height;
    bough_row row;
    row.y = y;
    row.first = top > 0 ? top : 0;
    row.height = end - row.first;
    row.padding = row.first - top;
    return row;
}

#endif
