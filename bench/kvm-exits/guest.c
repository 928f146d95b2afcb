/*
 * How long an access takes that leaves the guest, by the guest's own clock: reads of COM1's line status and writes to port
 * 0x80, so many of each, told on COM1 as "NAME TICKS COUNT" in hexadecimal; then ACPI S5. A Multiboot image, which acrn-dm
 * and vmm.c start alike. What is told is the median of batches of 20, so that other work on the machine counts for less.
 *
 * -DWARM_TICKS=N: both for so long before it counts. The device model's code is compiled meanwhile, in another thread, which
 * takes a time and not a number of accesses: on a busy machine 100,000 of them are served by the interpreter.
 */
typedef unsigned int u32;
typedef unsigned long long u64;

#define COM1 0x3f8
#define PM1A_CONTROL 0x404
#define SLEEP_S5 0x3400
#ifndef ROUNDS
#define ROUNDS 20000u
#endif
#define BATCH 20u
#ifndef WARM_TICKS
#define WARM_TICKS 0ull
#endif

__attribute__((section(".multiboot"), used)) static const u32 header[] = {0x1badb002, 0, (u32)-0x1badb002};
char stack[4096] __attribute__((used, aligned(16)));
__asm__(".globl _start\n_start: movl $stack + 4096, %esp\n call run\n hlt\n");

static inline void out8(unsigned short port, unsigned char value) {
  __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static inline unsigned char in8(unsigned short port) {
  unsigned char value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u64 ticks(void) {
  u64 now;
  __asm__ volatile("rdtsc" : "=A"(now));
  return now;
}

static void text(const char *s) {
  while (*s) out8(COM1, *s++);
}
static void hex(u64 value) {
  for (int shift = 60; shift >= 0; shift -= 4) out8(COM1, "0123456789abcdef"[(value >> shift) & 15]);
}
static void tell(const char *name, u64 took) {
  text(name);
  text(" ");
  hex(took);
  text(" ");
  hex(ROUNDS);
  text("\n");
}

static u32 batches[ROUNDS / BATCH];

static void sort(void) {
  for (u32 gap = ROUNDS / BATCH / 2; gap > 0; gap /= 2)
    for (u32 i = gap; i < ROUNDS / BATCH; i++) {
      u32 batch = batches[i], at = i;
      for (; at >= gap && batches[at - gap] > batch; at -= gap) batches[at] = batches[at - gap];
      batches[at] = batch;
    }
}

/* Ticks of all rounds, at the pace of the median batch. */
static u64 pace(int is_read) {
  for (u32 batch = 0; batch < ROUNDS / BATCH; batch++) {
    u64 start = ticks();
    if (is_read)
      for (u32 i = 0; i < BATCH; i++) in8(COM1 + 5);
    else
      for (u32 i = 0; i < BATCH; i++) out8(0x80, 1);
    u64 took = ticks() - start;
    batches[batch] = took > ~0u ? ~0u : took;
  }
  sort();
  return (u64)batches[ROUNDS / BATCH / 2] * (ROUNDS / BATCH);
}

__attribute__((used)) void run(void) {
  u64 start = ticks();
  do {
    for (u32 i = 0; i < 100; i++) in8(COM1 + 5);
    for (u32 i = 0; i < 100; i++) out8(0x80, 1);
  } while (ticks() - start < WARM_TICKS);
  tell("in", pace(1));
  tell("out", pace(0));
  __asm__ volatile("outw %0, %1" ::"a"((unsigned short)SLEEP_S5), "Nd"((unsigned short)PM1A_CONTROL));
  for (;;) __asm__ volatile("cli; hlt");
}
