#include "bough_kernels.h"

void bough_copy_s8(const bough_copy *copy, const int8_t *input, int8_t *output)
{
    int32_t index[BOUGH_AXES] = {0};
    const int32_t last = copy->axes - 1;
    input += copy->start_in;
    output += copy->start_out;
    for (;;) {
        const int8_t *from = input;
        int8_t *to = output;
        for (int32_t i = 0; i < copy->dims[last]; i++) {
            *to = *from;
            from += copy->in_strides[last];
            to += copy->out_strides[last];
        }
        int32_t axis = last - 1;
        while (axis >= 0 && ++index[axis] == copy->dims[axis]) {
            input -= copy->in_strides[axis] * (copy->dims[axis] - 1);
            output -= copy->out_strides[axis] * (copy->dims[axis] - 1);
            index[axis--] = 0;
        }
        if (axis < 0) {
            return;
        }
        input += copy->in_strides[axis];
        output += copy->out_strides[axis];
    }
}
