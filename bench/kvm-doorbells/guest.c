/*
 * The way of a doorbell from one VM to another and back, in the ticks of the one that rang first: PING and PONG (-DROLE=)
 * take turns, each asleep in HLT until it is rung. With an ivshmem function they ring through it; without one a word at
 * BARE_BELL rings, and a message with FIRST_VECTOR answers (vmm.c). PING tells p50 and p99 on COM1, in hexadecimal. A Multiboot image.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { PING, PONG };
#ifndef ROUNDS
#define ROUNDS 2001u
#endif
#define WARM_UP 500u
#define BARE_BELL 0xfd000000u

enum { COM1 = 0x3f8, PM1A_CONTROL = 0x404, SLEEP_S5 = 0x3400, CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc };
enum { LAPIC = 0xfee00000u, LAPIC_EOI = 0xb0, LAPIC_SVR = 0xf0, FIRST_VECTOR = 0x40 };
enum { IV_POSITION = 0x8, DOORBELL = 0xc };

__attribute__((section(".multiboot"), used)) static const u32 header[] = {0x1badb002, 0, (u32)-0x1badb002};
char stack[4096] __attribute__((used, aligned(16)));
__asm__(".globl _start\n_start: cli\n movl $stack + 4096, %esp\n call run\n hlt\n");
/* Asleep until an interrupt: STI lets none in before the HLT. */
void sleep(void);
extern const char sleep_hlt[];
__asm__("sleep: sti\nsleep_hlt: hlt\n ret\n");

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u32 in32(u16 port) {
  u32 value;
  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u32 read32(u32 address) { return *(volatile u32 *)address; }
static inline void write32(u32 address, u32 value) { *(volatile u32 *)address = value; }
static inline u64 ticks(void) {
  u64 now;
  __asm__ volatile("rdtsc" : "=A"(now));
  return now;
}
static void text(const char *s) {
  while (*s) out8(COM1, (u8)*s++);
}
static void tell(const char *name, u32 value) {
  text(name);
  text(" ");
  for (int shift = 28; shift >= 0; shift -= 4) out8(COM1, (u8)"0123456789abcdef"[(value >> shift) & 15]);
  text("\n");
}
static void power_off(void) {
  __asm__ volatile("outw %0, %1" ::"a"((u16)SLEEP_S5), "Nd"((u16)PM1A_CONTROL));
  for (;;) __asm__ volatile("cli; hlt");
}

/* ---- interrupts */

struct frame {
  u32 ip, cs, flags;
};
struct gate {
  u16 low, selector, type, high;
};
static struct gate idt[256] __attribute__((aligned(8)));
static const u64 gdt[] __attribute__((aligned(8))) = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
static volatile u32 came;
/* Interrupts that came between STI and HLT. */
static volatile u32 shadowless;

static __attribute__((interrupt)) void on_bell(struct frame *frame) {
  volatile struct frame *at = frame;
  came++;
  /* A CPU in emulation may forget what STI holds back: the HLT would sleep over what has just come. */
  if (at->ip == (u32)sleep_hlt) {
    at->ip++;
    shadowless++;
  }
  write32(LAPIC + LAPIC_EOI, 0);
}
static __attribute__((interrupt)) void on_other(struct frame *frame) {
  (void)frame;
  text("WRONG: an exception or an interrupt nobody sent\n");
  power_off();
}

static void listen_to_interrupts(void) {
  const struct {
    u16 limit;
    const void *base;
  } __attribute__((packed)) gdt_at = {sizeof(gdt) - 1, gdt}, idt_at = {sizeof(idt) - 1, idt};
  __asm__ volatile("lgdt %0; ljmp $8, $1f; 1: mov %1, %%ds; mov %1, %%es; mov %1, %%ss" ::"m"(gdt_at), "r"(16) : "memory");
  for (u32 v = 0; v < 256; v++) {
    u32 handler = (u32)(v == FIRST_VECTOR ? on_bell : on_other);
    idt[v] = (struct gate){(u16)handler, 8, 0x8e00, (u16)(handler >> 16)};
  }
  __asm__ volatile("lidt %0" ::"m"(idt_at));
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
  write32(LAPIC + LAPIC_SVR, 0x1ff);
}

/* ---- the bell */

static u32 bell = BARE_BELL, bell_value;

static u32 config(u32 device, u32 offset) {
  out32(CONFIG_ADDRESS, 0x80000000u | device << 11 | offset);
  return in32(CONFIG_DATA);
}
static void set_config(u32 device, u32 offset, u32 value) {
  out32(CONFIG_ADDRESS, 0x80000000u | device << 11 | offset);
  out32(CONFIG_DATA, value);
}

/* Its BARs are placed already. The two tell each other who they are by its memory. */
static void find_bell(void) {
  u32 device = 0;
  while (device < 32 && config(device, 0) != 0x11101af4) device++;
  if (device == 32) return;
  set_config(device, 4, 6); /* memory decoding, bus master */
  u32 registers = config(device, 0x10) & ~15u;
  u32 table = config(device, 0x14) & ~15u;
  volatile u32 *ids = (volatile u32 *)(config(device, 0x18) & ~15u);
  u32 msix = config(device, 0x34) & 0xfc;
  while ((config(device, msix) & 0xff) != 0x11) msix = config(device, msix) >> 8 & 0xfc;
  write32(table, LAPIC);
  write32(table + 4, 0);
  write32(table + 8, FIRST_VECTOR);
  write32(table + 12, 0);
  set_config(device, msix, config(device, msix) | 0x80000000u);
  ids[ROLE] = read32(registers + IV_POSITION) + 1;
  while (ids[!ROLE] == 0) __asm__ volatile("pause");
  bell = registers + DOORBELL;
  bell_value = (ids[!ROLE] - 1) << 16;
}

static void wait_for(u32 count) {
  for (;;) {
    __asm__ volatile("cli");
    if (came >= count) break;
    sleep();
  }
  __asm__ volatile("sti");
}

static u32 took[ROUNDS];

__attribute__((used)) void run(void) {
  listen_to_interrupts();
  __asm__ volatile("sti");
  if (ROLE == PONG) text("listening\n");
  find_bell();
  for (u32 n = 1; n <= WARM_UP + ROUNDS; n++) {
    u64 start = ticks();
    if (ROLE == PONG) wait_for(n);
    write32(bell, bell_value);
    if (ROLE == PING) wait_for(n);
    if (n > WARM_UP) took[n - WARM_UP - 1] = (u32)(ticks() - start);
  }
  if (shadowless > 0) tell("interrupts between STI and HLT", shadowless);
  if (ROLE == PING) {
    for (u32 i = 1; i < ROUNDS; i++) {
      u32 value = took[i], j = i;
      for (; j > 0 && took[j - 1] > value; j--) took[j] = took[j - 1];
      took[j] = value;
    }
    tell("p50", took[ROUNDS / 2]);
    tell("p99", took[ROUNDS * 99 / 100]);
  }
  power_off();
}
