/*
 * A kernel that says how it was started (images.sh builds one for each way, -DWAY=), what its command line is, and how many
 * modules and ranges of RAM it was told of; then it powers off.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#define MULTIBOOT1 1
#define KLUDGE 2 /* Multiboot 1 whose header has the addresses: the file is no ELF file */
#define MULTIBOOT2 3
#define PVH 4

#if WAY == MULTIBOOT1
/* Modules on page boundaries, memory information. */
__asm__(".section .header, \"a\"\n .long 0x1badb002, 3, -(0x1badb002 + 3)\n");
#elif WAY == KLUDGE
__asm__(".section .header, \"a\"\nheader: .long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)\n"
        " .long header, header, edata, end, _start\n");
#elif WAY == MULTIBOOT2
__asm__(".section .header, \"a\"\n .balign 8\nheader: .long 0xe85250d6, 0, header_end - header, -(0xe85250d6 + header_end - header)\n"
        " .short 0, 0\n .long 8\nheader_end:\n");
#else
__asm__(".section .note.pvh, \"a\", @note\n .long 4, 4, 18\n .asciz \"Xen\"\n .long _start\n");
__asm__(".section .header, \"a\"\n .long 0\n");
#endif
static u8 stack[16384] __attribute__((used, aligned(16)));
__asm__(".text\n.globl _start\n_start: cli\n movl $stack + 16384, %esp\n pushl %ebx\n pushl %eax\n call run\n1: hlt\n jmp 1b\n");

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }

static void put(const char *text) {
  while (*text) out8(0x3f8, (u8)*text++);
}
static void putNumber(u32 value) {
  if (value >= 10) putNumber(value / 10);
  out8(0x3f8, (u8)('0' + value % 10));
}
static u32 at32(u32 address) { return *(volatile u32 *)address; }

static u32 commandLine, modules, ranges, firstWord;

/* Multiboot 0.6.96, section 3.3. */
static inline void multiboot1(u32 info) {
  u32 flags = at32(info);
  if (flags & 1 << 2) commandLine = at32(info + 16);
  if (flags & 1 << 3) {
    modules = at32(info + 20);
    if (modules) firstWord = at32(at32(at32(info + 24)));
  }
  if (!(flags & 1 << 6)) return;
  u32 from = at32(info + 48), end = from + at32(info + 44);
  for (; from < end; from += at32(from) + 4) ranges += at32(from + 20) == 1;
}

/* Multiboot 2.0, section 3.6. */
static inline void multiboot2(u32 info) {
  u32 end = info + at32(info);
  for (u32 tag = info + 8; tag < end && at32(tag) != 0; tag += (at32(tag + 4) + 7) & ~7u) {
    if (at32(tag) == 1) commandLine = tag + 8;
    if (at32(tag) == 3 && modules++ == 0) firstWord = at32(at32(tag + 8));
    if (at32(tag) == 6)
      for (u32 entry = tag + 16; entry < tag + at32(tag + 4); entry += at32(tag + 8)) ranges += at32(entry + 16) == 1;
  }
}

/* struct hvm_start_info. */
static inline void pvh(u32 info) {
  commandLine = at32(info + 24);
  modules = at32(info + 12);
  if (modules) firstWord = at32(at32(at32(info + 16)));
  u32 entry = at32(info + 40);
  for (u32 i = 0; i < at32(info + 48); i++, entry += 24) ranges += at32(entry + 16) == 1;
}

__attribute__((used)) void run(u32 eax, u32 ebx) {
#if WAY == PVH
  (void)eax;
  put(at32(ebx) == 0x336ec578 ? "PVH" : "WRONG");
  pvh(ebx);
#elif WAY == MULTIBOOT2
  put(eax == 0x36d76289 ? "MULTIBOOT2" : "WRONG");
  multiboot2(ebx);
#else
  put(eax == 0x2badb002 ? "MULTIBOOT1" : "WRONG");
  multiboot1(ebx);
#endif
  put(", told: ");
  put(commandLine ? (const char *)commandLine : "nothing");
  put(", modules ");
  putNumber(modules);
  put(firstWord == 0x21646f4d ? " as they are" : " other than they are"); /* "Mod!" */
  put(ranges >= 2 ? ", with its RAM\r\n" : ", without its RAM\r\n");
  out16(0x404, 0x3400);
}
