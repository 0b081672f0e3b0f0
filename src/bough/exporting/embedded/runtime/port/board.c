/* Start-up of a Cortex-M board, its SysTick timer, and semihosting. */
#include "platform.h"

extern uint32_t board_data_source, board_data_start, board_data_end, board_bss_start, board_bss_end, board_stack_top;
int main(void);

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

static volatile uint32_t wraps;

enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026, SYSTICK_BITS = 24 };

static void semihosting(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void platform_print(const char *label, int32_t value, const char *end)
{
    char digits[12];
    char *at = digits + sizeof digits;
    uint32_t left = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
    *--at = '\0';
    do {
        *--at = (char)('0' + left % 10u);
        left /= 10u;
    } while (left);
    if (value < 0) {
        *--at = '-';
    }
    semihosting(SYS_WRITE0, label);
    semihosting(SYS_WRITE0, at);
    semihosting(SYS_WRITE0, end);
}

void platform_exit(int status)
{
    const uint32_t block[2] = {APPLICATION_EXIT, (uint32_t)status};
    semihosting(SYS_EXIT_EXTENDED, block);
    for (;;) {
    }
}

/* SysTick counts down from 2^24 - 1; the handler counts how often it wraps. */
uint32_t platform_ticks(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = REGISTER(0xE000E018);
    } while (before != wraps || (REGISTER(0xE000ED04) & (1u << 26)) != 0); /* again if a wrap is not counted yet */
    return (before << SYSTICK_BITS) + (0xFFFFFFu - value);
}

static void systick_handler(void)
{
    wraps = wraps + 1;
}

static void fault_handler(void)
{
    platform_print("fault ", (int32_t)REGISTER(0xE000ED28), "\n");
    platform_exit(3);
}

void reset_handler(void)
{
    const uint32_t *from = &board_data_source;
    for (uint32_t *to = &board_data_start; to < &board_data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = &board_bss_start; to < &board_bss_end; to++) {
        *to = 0;
    }
    REGISTER(0xE000ED88) |= 0xFu << 20; /* floating point and vector unit on */
    __asm__ volatile("dsb\n\tisb");
    REGISTER(0xE000E014) = 0xFFFFFFu; /* SysTick: reload, clear, run from the processor's clock with interrupt */
    REGISTER(0xE000E018) = 0;
    REGISTER(0xE000E010) = 7;
    while (REGISTER(0xE000E018) == 0) { /* it reads 0 until it is loaded */
    }
    platform_exit(main());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &board_stack_top,
    (const void *)reset_handler,
    (const void *)fault_handler,
    (const void *)fault_handler,
    (const void *)fault_handler,
    (const void *)fault_handler,
    (const void *)fault_handler,
    0,
    0,
    0,
    0,
    (const void *)fault_handler,
    0,
    0,
    (const void *)fault_handler,
    (const void *)systick_handler,
};
