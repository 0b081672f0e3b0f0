/* Printing, time and exit on the host or, by semihosting, on an emulated board. */
#ifndef PLATFORM_H
#define PLATFORM_H

#include <stdint.h>

void platform_print(const char *label, int32_t value, const char *end);
uint32_t platform_ticks(void);
void platform_exit(int status);

#endif
