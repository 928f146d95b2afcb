/* The demo guest: 32-bit, flat, no paging, one CPU. Every file is one thing a User VM has. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* ---- the machine's instructions */

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline u8 read8(u32 address) { return *(volatile u8 *)address; }
static inline u32 read32(u32 address) { return *(volatile u32 *)address; }
static inline void write8(u32 address, u8 value) { *(volatile u8 *)address = value; }
static inline void write32(u32 address, u32 value) { *(volatile u32 *)address = value; }

/* ---- boot.S: how we were entered */

extern u32 entry_address, zero_page_address, entry_cr0;

/* ---- console.c: COM1, and text */

void console_init(void);
/* Knows %s %c %d %u %x with width and 0, and %p: an address as 0x%08x. Line ends become CR LF. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A heading, filled up with dashes. */
void section(const char *title);
/* "  label           " so that values line up. */
void label(const char *text);
/* Next typed byte, or -1. */
int console_read(void);
void console_enable_interrupt(void);

u32 length(const char *text);
int same(const char *a, const char *b, u32 n);
void copy(void *to, const void *from, u32 n);

/* ---- clock.c: RTC, PIT, local APIC timer */

#define TICK_MS 10
extern volatile u32 ticks;              /* counts every TICK_MS once the timer runs */
void rtc_print(void);
/* Starts the tick. Returns timer counts per millisecond, 0 if the PIT does not count (then a guess is used). */
u32 timer_start(void);
/* Sleeps until the next interrupt, at most a tick. */
void idle(void);
void sleep_ms(u32 ms);

/* ---- interrupts.c: IDT, local APIC, I/O APIC */

enum { VECTOR_TIMER = 0x30, VECTOR_COM1 = 0x34, VECTOR_IVSHMEM = 0x40, VECTOR_VUART = 0x50, VECTOR_SPURIOUS = 0xff };
extern volatile u32 interrupts[256];    /* how often each vector came */
void interrupts_init(void);
u32 lapic_id(void);
void ioapic_route(u32 pin, u8 vector);
/* Waits until `vector` came more often than `before`. Returns 0 after `ms`. */
int wait_interrupt(u8 vector, u32 before, u32 ms);
void triple_fault(void) __attribute__((noreturn));

/* ---- pci.c */

struct bar {
	u32 address;                    /* as the guest uses it; 0 = none */
	u32 size;
	u8 io, wide, prefetchable;
};
struct function {
	u8 bus, device, function;
	u16 vendor_id, device_id;
	u32 class_code;                 /* class << 16 | subclass << 8 | interface */
	u8 revision, pin, line;
	struct bar bars[6];
	u8 msix;                        /* offset of the MSI-X capability, 0 = none */
	u16 msix_vectors;
	u32 msix_table;                 /* address */
};
#define MAX_FUNCTIONS 32
extern struct function functions[MAX_FUNCTIONS];
extern u32 function_count;

u32 pci_read(const struct function *f, u32 offset);
void pci_write(const struct function *f, u32 offset, u32 value);
void pci_scan(void);
void pci_print(void);
struct function *pci_find(u16 vendor_id, u16 device_id, u32 nth);
/* Memory decoding and MSI-X on; vectors base.. go to this CPU. */
void pci_enable(struct function *f, u8 vector_base);

/* ---- acpi.c */

void acpi_init(void);
void acpi_print(void);
void power_button(void);
void power_off(void) __attribute__((noreturn));

/* ---- ivshmem.c, vuart.c: the devices a hypervisor emulates for its guests */

int ivshmem_init(void);
void ivshmem_tour(void);
int ivshmem_send(const char *text);
int ivshmem_receive(void);
/* A counter in shared memory that survives a reset of the machine. */
volatile u32 *ivshmem_counter(void);

int vuart_init(void);
void vuart_tour(void);
int vuart_send(const char *text);
int vuart_echo(void);
