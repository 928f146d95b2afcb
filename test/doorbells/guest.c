/*
 * A guest of the doorbell test (run.sh): ivshmem between VMs of several processes. One image for each role (-DROLE=):
 *
 *   SENDER, ANSWERER  pass blocks of shared memory back and forth, one doorbell each way a block. Each waits for the other's
 *                     doorbell before it rings again, so every doorbell is one interrupt: a missing one stops both, one too
 *                     many is counted at once.
 *   VISITOR           rings both once, waits until both have seen it, and goes; with -DLAST=1 it tells them to stop.
 *   FLOODER           rings both as fast as it can, until it is killed.
 *
 * Tells on COM1, in hexadecimal; "WRONG" is a finding. A Multiboot image, 32 bits, no paging.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { SENDER, ANSWERER, VISITOR, FLOODER };
/* Blocks at least, and their size. */
#ifndef ROUNDS
#define ROUNDS 5000u
#endif
#ifndef BLOCK_BYTES
#define BLOCK_BYTES 4096u
#endif
#ifndef LAST
#define LAST 0
#endif
#define BLOCK_WORDS (BLOCK_BYTES / 4)
#define SETTLE_TICKS 1000000000ull

enum { COM1 = 0x3f8, PM1A_CONTROL = 0x404, SLEEP_S5 = 0x3400, CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc };
enum { LAPIC = 0xfee00000u, LAPIC_EOI = 0xb0, LAPIC_SVR = 0xf0, FIRST_VECTOR = 0x40, VECTORS = 8 };
enum { IV_POSITION = 0x8, DOORBELL = 0xc };
/* Vectors of a doorbell; the others are never rung. */
enum { BELL_BLOCK = 1, BELL_ANSWER = 2, BELL_VISIT = 5, BELL_FLOOD = 6 };

struct shared {
  u32 ids[2];          /* sender's and answerer's; the answerer listens before the sender starts */
  u32 number, sum;     /* of the block */
  u32 answered;        /* number of the last block that was read */
  u32 last;            /* number of the last block there will be */
  u32 seen[2];         /* visits each saw */
  u32 visits;
  u32 stop;
};
#define BLOCK_OFFSET 4096

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
static void tell(const char *name, u64 value) {
  text(name);
  text(" ");
  for (int shift = 60; shift >= 0; shift -= 4)
    if (value >> shift || shift == 0) out8(COM1, (u8)"0123456789abcdef"[(value >> shift) & 15]);
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
static volatile u32 came[VECTORS];
/* Interrupts that came between STI and HLT. */
static volatile u32 shadowless;
static volatile struct shared *shared;
static u32 registers, block;

static void on_bell(volatile struct frame *frame, u32 vector) {
  came[vector]++;
  /* A CPU in emulation may forget what STI holds back: the HLT would sleep over what has just come. */
  if (frame->ip == (u32)sleep_hlt) {
    frame->ip++;
    shadowless++;
  }
  if (vector == BELL_VISIT && ROLE <= ANSWERER) shared->seen[ROLE]++;
  write32(LAPIC + LAPIC_EOI, 0);
}
#define HANDLER(n) \
  static __attribute__((interrupt)) void handler##n(struct frame *frame) { \
    on_bell(frame, n); \
  }
HANDLER(0) HANDLER(1) HANDLER(2) HANDLER(3) HANDLER(4) HANDLER(5) HANDLER(6) HANDLER(7)

static __attribute__((interrupt)) void on_other(struct frame *frame) {
  (void)frame;
  text("WRONG: an exception or an interrupt nobody sent\n");
  power_off();
}

static void gate(u32 vector, const void *handler) {
  idt[vector] = (struct gate){(u16)(u32)handler, 8, 0x8e00, (u16)((u32)handler >> 16)};
}

static void listen_to_interrupts(void) {
  const struct {
    u16 limit;
    const void *base;
  } __attribute__((packed)) gdt_at = {sizeof(gdt) - 1, gdt}, idt_at = {sizeof(idt) - 1, idt};
  const void *handlers[] = {handler0, handler1, handler2, handler3, handler4, handler5, handler6, handler7};
  __asm__ volatile("lgdt %0; ljmp $8, $1f; 1: mov %1, %%ds; mov %1, %%es; mov %1, %%ss" ::"m"(gdt_at), "r"(16) : "memory");
  for (u32 v = 0; v < 256; v++) gate(v, on_other);
  for (u32 v = 0; v < VECTORS; v++) gate(FIRST_VECTOR + v, handlers[v]);
  __asm__ volatile("lidt %0" ::"m"(idt_at));
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
  write32(LAPIC + LAPIC_SVR, 0x1ff);
}

/* ---- the function: its BARs are placed already */

static u32 config(u32 device, u32 offset) {
  out32(CONFIG_ADDRESS, 0x80000000u | device << 11 | offset);
  return in32(CONFIG_DATA);
}
static void set_config(u32 device, u32 offset, u32 value) {
  out32(CONFIG_ADDRESS, 0x80000000u | device << 11 | offset);
  out32(CONFIG_DATA, value);
}

static void find_ivshmem(void) {
  u32 device = 0;
  while (device < 32 && config(device, 0) != 0x11101af4) device++;
  if (device == 32) {
    text("WRONG: no ivshmem\n");
    power_off();
  }
  set_config(device, 4, 6); /* memory decoding, bus master */
  registers = config(device, 0x10) & ~15u;
  u32 table = config(device, 0x14) & ~15u;
  u32 memory = config(device, 0x18) & ~15u;
  shared = (volatile struct shared *)memory;
  block = memory + BLOCK_OFFSET;
  u32 msix = config(device, 0x34) & 0xfc;
  while ((config(device, msix) & 0xff) != 0x11) msix = config(device, msix) >> 8 & 0xfc;
  for (u32 v = 0; v < VECTORS; v++) {
    write32(table + 16 * v, LAPIC);
    write32(table + 16 * v + 4, 0);
    write32(table + 16 * v + 8, FIRST_VECTOR + v);
    write32(table + 16 * v + 12, 0);
  }
  set_config(device, msix, config(device, msix) | 0x80000000u);
}

static void ring(u32 peer, u32 vector) { write32(registers + DOORBELL, peer << 16 | vector); }

/* Sleeps until so many doorbells of a kind came. */
static void wait_for(u32 vector, u32 count) {
  for (;;) {
    __asm__ volatile("cli");
    if (came[vector] >= count) break;
    sleep();
  }
  __asm__ volatile("sti");
}

/* ---- roles */

static u32 wrong;
static void check(int is_right, const char *what, u32 value) {
  if (is_right) return;
  text("WRONG: ");
  tell(what, value);
  if (++wrong > 20) power_off();
}

static u32 word_of(u32 number, u32 i) { return (number * 0x9e3779b1u + i) * 2654435761u; }

static void send_block(u32 number) {
  u32 sum = 0;
  for (u32 i = 0; i < BLOCK_WORDS; i++) {
    u32 word = word_of(number, i);
    write32(block + 4 * i, word);
    sum = (sum << 1 | sum >> 31) ^ word;
  }
  shared->sum = sum;
  shared->number = number;
  ring(shared->ids[ANSWERER], BELL_BLOCK);
}

static void read_block(u32 number) {
  u32 sum = 0, bad = 0;
  for (u32 i = 0; i < BLOCK_WORDS; i++) {
    u32 word = read32(block + 4 * i);
    bad += word != word_of(number, i);
    sum = (sum << 1 | sum >> 31) ^ word;
  }
  check(shared->number == number, "a doorbell without its block", number);
  check(bad == 0 && sum == shared->sum, "words of a block that differ", bad);
  shared->answered = number;
  ring(shared->ids[SENDER], BELL_ANSWER);
}

static u32 pass_blocks(void) {
  const u32 heard = ROLE == SENDER ? BELL_ANSWER : BELL_BLOCK;
  u32 number = 0;
  u64 began;
  shared->ids[ROLE] = read32(registers + IV_POSITION);
  text("listening\n");
  began = ticks();
  for (;;) {
    number++;
    if (ROLE == SENDER) {
      if (number >= ROUNDS && shared->stop) shared->last = number;
      send_block(number);
    }
    wait_for(heard, number);
    check(came[heard] == number, "a doorbell too many at block", number);
    if (ROLE == SENDER) check(shared->answered == number, "an answer too early at block", number);
    else read_block(number);
    if (number % (ROUNDS / 4) == 0) tell("blocks", number);
    if (shared->last == number) break;
  }
  tell("ticks", ticks() - began);
  if (shadowless > 0) tell("interrupts between STI and HLT", shadowless);
  /* Whatever is still under way has time to come. */
  for (began = ticks(); ticks() - began < SETTLE_TICKS;) __asm__ volatile("pause");
  for (u32 v = 0; v < VECTORS; v++) {
    u32 right = v == heard ? number : v == BELL_VISIT ? shared->visits : 0;
    if (v != BELL_FLOOD) check(came[v] == right, "doorbells that should not be, of vector", v);
  }
  return number;
}

static void visit(void) {
  u32 before[2] = {shared->seen[SENDER], shared->seen[ANSWERER]};
  for (u32 role = SENDER; role <= ANSWERER; role++) {
    ring(shared->ids[role], BELL_VISIT);
    while (shared->seen[role] == before[role]) __asm__ volatile("pause");
    check(shared->seen[role] == before[role] + 1, "visits seen twice by", role);
  }
  shared->visits++;
  if (LAST) shared->stop = 1;
}

__attribute__((used)) void run(void) {
  listen_to_interrupts();
  find_ivshmem();
  __asm__ volatile("sti");
  if (ROLE <= ANSWERER) {
    tell("blocks in all", pass_blocks());
  } else if (ROLE == VISITOR) {
    visit();
  } else {
    text("flooding\n");
    for (;;) {
      ring(shared->ids[SENDER], BELL_FLOOD);
      ring(shared->ids[ANSWERER], BELL_FLOOD);
    }
  }
  tell("done, wrong", wrong);
  power_off();
}
