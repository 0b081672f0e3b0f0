/* The taps of a window that lie inside the input. */
#ifndef BOUGH_WINDOW_H
#define BOUGH_WINDOW_H

#include <stdint.h>

typedef struct {
    int32_t first; /* tap */
    int32_t end;   /* tap after the last one; none lies inside where it is not above `first` */
} bough_taps;

/* Taps at start, start + dilation, ... of an axis with `size` places. */
static inline bough_taps bough_taps_of(int32_t start, int32_t dilation, int32_t count, int32_t size)
{
    const int32_t inside = start < size ? (size - start + dilation - 1) / dilation : 0;
    bough_taps taps;
    taps.first = start < 0 ? (dilation - 1 - start) / dilation : 0;
    taps.end = inside < count ? inside : count;
    return taps;
}

#endif
