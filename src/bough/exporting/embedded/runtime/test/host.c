#include "platform.h"

#include <stdio.h>
#include <stdlib.h>

void platform_print(const char *label, int32_t value, const char *end)
{
    printf("%s%ld%s", label, (long)value, end);
}

uint32_t platform_ticks(void)
{
    return 0;
}

void platform_exit(int status)
{
    exit(status);
}
