/* COM1 as console (16550 at port 0x3f8), and the few text functions the rest needs. */
#include "guest.h"

enum { COM1 = 0x3f8, RBR_THR = 0, IER = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5 };
enum { LSR_DATA_READY = 1 << 0, LSR_THR_EMPTY = 1 << 5 };
enum { COM1_PIN = 4 };

void console_init(void)
{
	outb(COM1 + IER, 0);
	outb(COM1 + LCR, 0x83);         /* 8n1, divisor latch on */
	outb(COM1 + RBR_THR, 1);        /* 115200 baud */
	outb(COM1 + IER, 0);
	outb(COM1 + LCR, 0x03);
	outb(COM1 + FCR, 0x07);         /* FIFOs on and empty */
	outb(COM1 + MCR, 0x0b);         /* DTR, RTS, OUT2 (gates the interrupt) */
}

void console_enable_interrupt(void)
{
	ioapic_route(COM1_PIN, VECTOR_COM1);
	outb(COM1 + IER, 1);            /* received data */
}

static void put(char c)
{
	for (u32 patience = 100000; patience != 0 && (inb(COM1 + LSR) & LSR_THR_EMPTY) == 0; patience--)
		;
	outb(COM1 + RBR_THR, (u8)c);
}

int console_read(void)
{
	return (inb(COM1 + LSR) & LSR_DATA_READY) != 0 ? inb(COM1 + RBR_THR) : -1;
}

static u32 column;

static void put_text(char c)
{
	if (c == '\n') {
		put('\r');
		column = 0;
	} else {
		column++;
	}
	put(c);
}

static void put_number(u32 value, u32 base, u32 width, char fill)
{
	char digits[12];
	u32 n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value != 0);
	for (; width > n; width--)
		put_text(fill);
	while (n != 0)
		put_text(digits[--n]);
}

void print(const char *format, ...)
{
	__builtin_va_list arguments;

	__builtin_va_start(arguments, format);
	for (; *format != 0; format++) {
		if (*format != '%') {
			put_text(*format);
			continue;
		}
		format++;
		int left = *format == '-';
		format += left;
		char fill = *format == '0' ? '0' : ' ';
		u32 width = 0;
		for (; *format >= '0' && *format <= '9'; format++)
			width = width * 10 + (u32)(*format - '0');
		switch (*format) {
		case 's': {
			const char *text = __builtin_va_arg(arguments, const char *);
			u32 n = length(text);

			for (; !left && width > n; width--)
				put_text(' ');
			while (*text != 0)
				put_text(*text++);
			for (; left && width > n; width--)
				put_text(' ');
			break;
		}
		case 'c':
			put_text((char)__builtin_va_arg(arguments, int));
			break;
		case 'd': {
			int value = __builtin_va_arg(arguments, int);

			if (value < 0) {
				put_text('-');
				value = -value;
			}
			put_number((u32)value, 10, width, fill);
			break;
		}
		case 'u':
			put_number(__builtin_va_arg(arguments, u32), 10, width, fill);
			break;
		case 'x':
			put_number(__builtin_va_arg(arguments, u32), 16, width, fill);
			break;
		case 'p':
			put_text('0');
			put_text('x');
			put_number((u32)__builtin_va_arg(arguments, void *), 16, 8, '0');
			break;
		default:
			put_text(*format);
		}
	}
	__builtin_va_end(arguments);
}

void section(const char *title)
{
	print("\n--- %s ", title);
	while (column < 78)
		put_text('-');
	print("\n");
}

void label(const char *text)
{
	print("  %-18s", text);
}

u32 length(const char *text)
{
	u32 n = 0;

	while (text[n] != 0)
		n++;
	return n;
}

int same(const char *a, const char *b, u32 n)
{
	for (; n != 0; n--)
		if (*a++ != *b++)
			return 0;
	return 1;
}

void copy(void *to, const void *from, u32 n)
{
	u8 *t = to;
	const u8 *f = from;

	while (n-- != 0)
		*t++ = *f++;
}
