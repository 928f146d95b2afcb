/*
 * PCI vUART: a 16550 behind a PCI function (MCS9900). The hypervisor's has its registers in memory (BAR0) and an
 * MSI-X vector; the device model's has them in I/O space and INTx.
 */
#include "guest.h"

enum { RBR_THR = 0, IER = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5 };
enum { LSR_DATA_READY = 1 << 0, LSR_THR_EMPTY = 1 << 5, MCR_LOOP = 1 << 4, MCR_DTR_RTS_OUT2 = 0x0b };
enum { PATIENCE_MS = 60000 };

static struct function *device;

static u8 reg_read(u32 reg)
{
	const struct bar *bar = &device->bars[0];

	return bar->io ? inb((u16)(bar->address + reg)) : read8(bar->address + reg);
}

static void reg_write(u32 reg, u8 value)
{
	const struct bar *bar = &device->bars[0];

	if (bar->io)
		outb((u16)(bar->address + reg), value);
	else
		write8(bar->address + reg, value);
}

int vuart_init(void)
{
	device = pci_find(0x9710, 0x9900, 0);
	if (device == 0 || device->bars[0].address == 0)
		return 0;
	pci_enable(device, VECTOR_VUART);
	reg_write(LCR, 0x83);
	reg_write(RBR_THR, 1);
	reg_write(IER, 0);
	reg_write(LCR, 0x03);
	reg_write(FCR, 0x07);
	reg_write(MCR, MCR_DTR_RTS_OUT2);
	reg_write(IER, 1);              /* interrupt on received data */
	return 1;
}

static void put(char c)
{
	for (u32 patience = 100; patience != 0 && (reg_read(LSR) & LSR_THR_EMPTY) == 0; patience--)
		idle();
	reg_write(RBR_THR, (u8)c);
}

static void put_line(const char *text)
{
	while (*text != 0)
		put(*text++);
	put('\n');
}

/* A line without its end, or 0 after `ms`. */
static char *get_line(u32 ms)
{
	static char line[256];
	u32 n = 0;

	for (u32 start = ticks; ticks - start <= ms / TICK_MS;) {
		if ((reg_read(LSR) & LSR_DATA_READY) == 0) {
			idle();
			continue;
		}
		char c = (char)reg_read(RBR_THR);
		if (c == '\n') {
			line[n] = 0;
			return line;
		}
		if (c != '\r' && n < sizeof(line) - 1)
			line[n++] = c;
	}
	return 0;
}

void vuart_tour(void)
{
	u32 before = interrupts[VECTOR_VUART];

	label("registers");
	print("16550 in %s space at %p\n", device->bars[0].io ? "I/O" : "memory", (void *)device->bars[0].address);
	reg_write(MCR, MCR_DTR_RTS_OUT2 | MCR_LOOP);
	reg_write(RBR_THR, 'U');
	int interrupted = device->msix != 0 && wait_interrupt(VECTOR_VUART, before, 200);
	u8 looped = (reg_read(LSR) & LSR_DATA_READY) != 0 ? reg_read(RBR_THR) : 0;
	reg_write(MCR, MCR_DTR_RTS_OUT2);
	reg_write(FCR, 0x07);
	label("loopback");
	print("sent 'U', got '%c': %s\n", looped >= ' ' ? looped : '?', looped == 'U' ? "good" : "WRONG");
	if (device->msix != 0) {
		label("interrupt");
		print("received-data MSI-X interrupt %s\n", interrupted ? "came: good" : "did not come: WRONG");
	}
	label("line");
	put_line("hello from the demo guest");
	print("sent \"hello from the demo guest\" to whoever is connected\n");
	char *answer = get_line(100);
	label("answer");
	if (answer != 0)
		print("\"%s\"\n", answer);
	else
		print("none within 100 ms\n");
}

int vuart_send(const char *text)
{
	print("  sending \"%s\" until it is answered\n", text);
	for (u32 tries = PATIENCE_MS / 500; tries != 0; tries--) {
		put_line(text);
		char *answer = get_line(500);
		if (answer != 0) {
			print("vuart-send: answer \"%s\"\n", answer);
			return 1;
		}
	}
	print("vuart-send: no answer\n");
	return 0;
}

int vuart_echo(void)
{
	print("  waiting for a line\n");
	char *line = get_line(PATIENCE_MS);
	if (line == 0) {
		print("vuart-echo: nothing came\n");
		return 0;
	}
	print("vuart-echo: got \"%s\", answering\n", line);
	put('e');
	put('c');
	put('h');
	put('o');
	put(' ');
	put_line(line);
	sleep_ms(100);                  /* let it drain before the power goes */
	return 1;
}
