/*
 * Interrupts the modern way: 8259s masked, everything through the local APIC. ISA lines arrive through the I/O APIC,
 * MSI-X vectors of PCI functions are writes to the local APIC's own address (Intel SDM vol. 3, chapter "APIC").
 */
#include "guest.h"

enum { LAPIC = 0xfee00000, LAPIC_ID = 0x20, LAPIC_TPR = 0x80, LAPIC_EOI = 0xb0, LAPIC_SVR = 0xf0, LAPIC_LINT0 = 0x350, LAPIC_LINT1 = 0x360 };
enum { IOAPIC = 0xfec00000, IOAPIC_SELECT = 0x00, IOAPIC_WINDOW = 0x10, IOAPIC_REDIRECTION = 0x10 };
enum { MASKED = 1 << 16 };

struct gate { u16 low; u16 selector; u16 type; u16 high; };
struct frame { u32 ip, cs, flags; };

static struct gate idt[256] __attribute__((aligned(8)));
volatile u32 interrupts[256];

#define HANDLER(name, vector)                                                                          \
	static __attribute__((interrupt)) void name(struct frame *frame)                              \
	{                                                                                             \
		(void)frame;                                                                          \
		interrupts[vector]++;                                                                 \
		write32(LAPIC + LAPIC_EOI, 0);                                                        \
	}
HANDLER(on_com1, VECTOR_COM1)
HANDLER(on_ivshmem0, VECTOR_IVSHMEM + 0)
HANDLER(on_ivshmem1, VECTOR_IVSHMEM + 1)
HANDLER(on_ivshmem2, VECTOR_IVSHMEM + 2)
HANDLER(on_ivshmem3, VECTOR_IVSHMEM + 3)
HANDLER(on_ivshmem4, VECTOR_IVSHMEM + 4)
HANDLER(on_ivshmem5, VECTOR_IVSHMEM + 5)
HANDLER(on_ivshmem6, VECTOR_IVSHMEM + 6)
HANDLER(on_ivshmem7, VECTOR_IVSHMEM + 7)
HANDLER(on_vuart, VECTOR_VUART)

static __attribute__((interrupt)) void on_timer(struct frame *frame)
{
	(void)frame;
	interrupts[VECTOR_TIMER]++;
	ticks++;
	write32(LAPIC + LAPIC_EOI, 0);
}

/* A spurious interrupt wants no EOI. */
static __attribute__((interrupt)) void on_spurious(struct frame *frame)
{
	(void)frame;
	interrupts[VECTOR_SPURIOUS]++;
}

static void fault(struct frame *frame, u32 code)
{
	print("\nunexpected exception at %p, error code 0x%x: powering off\n", (void *)frame->ip, code);
	power_off();
}

static __attribute__((interrupt)) void on_exception(struct frame *frame) { fault(frame, 0); }
static __attribute__((interrupt)) void on_exception_with_code(struct frame *frame, u32 code) { fault(frame, code); }

static void gate(u32 vector, const void *handler)
{
	idt[vector].low = (u16)(u32)handler;
	idt[vector].selector = 0x10;
	idt[vector].type = 0x8e00;      /* present, 32-bit interrupt gate */
	idt[vector].high = (u16)((u32)handler >> 16);
}

void interrupts_init(void)
{
	/* Vectors whose exceptions push an error code: #DF #TS #NP #SS #GP #PF #AC */
	const u32 with_code = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
	const struct { u16 limit; const void *base; } __attribute__((packed)) pointer = { sizeof(idt) - 1, idt };

	for (u32 v = 0; v < 32; v++)
		gate(v, (with_code & (1u << v)) != 0 ? (const void *)on_exception_with_code : (const void *)on_exception);
	for (u32 v = 32; v < 256; v++)
		gate(v, on_spurious);
	gate(VECTOR_TIMER, on_timer);
	gate(VECTOR_COM1, on_com1);
	gate(VECTOR_IVSHMEM + 0, on_ivshmem0);
	gate(VECTOR_IVSHMEM + 1, on_ivshmem1);
	gate(VECTOR_IVSHMEM + 2, on_ivshmem2);
	gate(VECTOR_IVSHMEM + 3, on_ivshmem3);
	gate(VECTOR_IVSHMEM + 4, on_ivshmem4);
	gate(VECTOR_IVSHMEM + 5, on_ivshmem5);
	gate(VECTOR_IVSHMEM + 6, on_ivshmem6);
	gate(VECTOR_IVSHMEM + 7, on_ivshmem7);
	gate(VECTOR_VUART, on_vuart);
	__asm__ volatile("lidt %0" : : "m"(pointer));

	outb(0x21, 0xff);               /* both 8259s: all lines masked */
	outb(0xa1, 0xff);
	write32(LAPIC + LAPIC_TPR, 0);
	write32(LAPIC + LAPIC_LINT0, MASKED);
	write32(LAPIC + LAPIC_LINT1, MASKED);
	write32(LAPIC + LAPIC_SVR, 0x100 | VECTOR_SPURIOUS);
}

u32 lapic_id(void)
{
	return read32(LAPIC + LAPIC_ID) >> 24;
}

/* Edge, active high, fixed delivery to this CPU: what an ISA line is. */
void ioapic_route(u32 pin, u8 vector)
{
	write32(IOAPIC + IOAPIC_SELECT, IOAPIC_REDIRECTION + 2 * pin + 1);
	write32(IOAPIC + IOAPIC_WINDOW, lapic_id() << 24);
	write32(IOAPIC + IOAPIC_SELECT, IOAPIC_REDIRECTION + 2 * pin);
	write32(IOAPIC + IOAPIC_WINDOW, vector);
}

int wait_interrupt(u8 vector, u32 before, u32 ms)
{
	for (u32 start = ticks; interrupts[vector] == before; idle())
		if (ticks - start > ms / TICK_MS)
			return 0;
	return 1;
}

void triple_fault(void)
{
	const struct { u16 limit; u32 base; } __attribute__((packed)) nothing = { 0, 0 };

	__asm__ volatile("cli; lidt %0; int3" : : "m"(nothing));
	for (;;)
		__asm__ volatile("cli; hlt");
}
