/* The tour, and the commands in the boot arguments: demo=WORD[,TEXT], several are run in order. */
#include "guest.h"

enum { ZP_E820_COUNT = 0x1e8, ZP_CMD_LINE = 0x228, ZP_E820_TABLE = 0x2d0 };
/* Survives a warm reset that keeps memory; the device model's loader does not touch it. */
enum { WARM_COUNTER = 0x600, WARM_MAGIC = 0x4d524157 };

static const char *boot_arguments(void)
{
	u32 at = read32(zero_page_address + ZP_CMD_LINE);

	return at != 0 ? (const char *)at : "";
}

static void tour_boot(void)
{
	section("Boot");
	label("entered at");
	print("%p, protected mode, paging %s (cr0 0x%x)\n", (void *)entry_address, (entry_cr0 >> 31) != 0 ? "on" : "off", entry_cr0);
	label("zero page");
	print("%p\n", (void *)zero_page_address);
	label("boot arguments");
	print("\"%s\"\n", boot_arguments());
}

static void tour_memory(void)
{
	u32 kib = 0;

	section("Memory: the e820 map in the zero page");
	for (u32 i = 0; i < read8(zero_page_address + ZP_E820_COUNT); i++) {
		u32 entry = zero_page_address + ZP_E820_TABLE + 20 * i;
		u64 start = (u64)read32(entry + 4) << 32 | read32(entry);
		u64 size = (u64)read32(entry + 12) << 32 | read32(entry + 8);
		u64 last = start + size - 1;
		u32 type = read32(entry + 16);

		if (size == 0)
			continue;       /* no high RAM: the entry is there and empty */
		print("  0x%02x_%08x - 0x%02x_%08x  %9u KiB  %s\n", (u32)(start >> 32), (u32)start, (u32)(last >> 32), (u32)last,
		      (u32)(size >> 10), type == 1 ? "RAM" : type == 3 ? "ACPI tables" : type == 4 ? "ACPI NVS" : "reserved");
		if (type == 1)
			kib += (u32)(size >> 10);
	}
	label("RAM in all");
	print("%u MiB\n", kib >> 10);
}

static void cpuid(u32 leaf, u32 *a, u32 *b, u32 *c, u32 *d)
{
	__asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(0));
}

static void tour_cpu(u32 timer_per_ms)
{
	u32 a, b, c, d;
	char text[13] = { 0 };

	section("CPU and time");
	cpuid(0, &a, &b, &c, &d);
	copy(text, &b, 4);
	copy(text + 4, &d, 4);
	copy(text + 8, &c, 4);
	label("CPU");
	print("%s, local APIC id %u\n", text, lapic_id());
	cpuid(1, &a, &b, &c, &d);
	if (c >> 31 != 0) {
		cpuid(0x40000000, &a, &b, &c, &d);
		copy(text, &b, 4);
		copy(text + 4, &c, 4);
		copy(text + 8, &d, 4);
		label("hypervisor");
		print("\"%s\"\n", text);
	}
	label("RTC");
	rtc_print();
	label("local APIC timer");
	if (timer_per_ms != 0)
		print("%u counts a millisecond, by the PIT\n", timer_per_ms);
	else
		print("the PIT did not count: WRONG\n");
	u32 before = ticks;
	sleep_ms(100);
	label("timer interrupts");
	print("%s\n", ticks - before >= 10 ? "come" : "do not come: WRONG");
}

static void tour(u32 timer_per_ms)
{
	tour_boot();
	tour_memory();
	tour_cpu(timer_per_ms);
	section("PCI: every function on bus 0");
	pci_print();
	section("ivshmem");
	if (ivshmem_init())
		ivshmem_tour();
	else
		print("  not found: give the VM one with -s 5,ivshmem,hv:/demo,2\n");
	section("PCI vUART");
	if (vuart_init())
		vuart_tour();
	else
		print("  not found: give the VM one with -s 6,uart,vuart_idx:1\n");
	section("ACPI");
	acpi_print();
}

/* Typed lines come back; `exit` ends. */
static void echo(void)
{
	char line[128];
	u32 n = 0;

	console_enable_interrupt();
	print("echo: type lines, \"exit\" powers off\n> ");
	for (;;) {
		int c = console_read();

		if (c < 0) {
			idle();
		} else if (c == '\r' || c == '\n') {
			line[n] = 0;
			print("\n");
			if (n == 4 && same(line, "exit", 4))
				break;
			if (n != 0)
				print("echo: \"%s\"\n> ", line);
			n = 0;
		} else if ((c == 8 || c == 127) && n != 0) {
			n--;
			print("\b \b");
		} else if (c >= ' ' && c < 127 && n < sizeof(line) - 1) {
			line[n++] = (char)c;
			print("%c", c);
		}
	}
	print("echo: COM1 interrupts %s\n", interrupts[VECTOR_COM1] != 0 ? "came" : "did not come (input was polled)");
}

static void reset_machine(const char *how)
{
	if (same(how, "kbd", 4))
		outb(0x64, 0xfe);
	else if (same(how, "triple", 7))
		triple_fault();
	else
		outb(0xcf9, same(how, "warm", 5) ? 0x06 : 0x0e);
	for (;;)
		__asm__ volatile("hlt");
}

/* Resets the machine once; the second time it is only told. The count is kept where a reset does not reach. */
static void reboot(const char *how)
{
	volatile u32 *count = (volatile u32 *)(WARM_COUNTER + 4);

	if (*(volatile u32 *)WARM_COUNTER != WARM_MAGIC) {
		*(volatile u32 *)WARM_COUNTER = WARM_MAGIC;
		*count = 0;
	}
	if (ivshmem_init())
		count = ivshmem_counter();
	else if (!same(how, "warm", 5)) {
		print("reboot: only a warm reset keeps the count without ivshmem\n");
		return;
	}
	if (*count != 0) {
		print("reboot: came back after a reset\n");
		*count = 0;
		return;
	}
	*count = 1;
	print("reboot: resetting (%s)\n", how);
	reset_machine(how);
}

static u32 number(const char *text, u32 otherwise)
{
	u32 value = 0;

	if (*text == 0)
		return otherwise;
	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (u32)(*text - '0');
	return value;
}

static int run(const char *command, const char *text, u32 timer_per_ms)
{
	static const struct { const char *name; int needs; } devices[] = { { "ivshmem-", 1 }, { "vuart-", 2 } };

	for (u32 i = 0; i < 2; i++) {
		if (!same(command, devices[i].name, length(devices[i].name)))
			continue;
		section(command);
		if (devices[i].needs == 1 ? !ivshmem_init() : !vuart_init()) {
			print("%s: no such device in this VM\n", command);
			return 0;
		}
	}
	if (same(command, "tour", 5))
		tour(timer_per_ms);
	else if (same(command, "ivshmem-send", 13))
		ivshmem_send(*text != 0 ? text : "hello");
	else if (same(command, "ivshmem-recv", 13))
		ivshmem_receive();
	else if (same(command, "vuart-send", 11))
		vuart_send(*text != 0 ? text : "hello");
	else if (same(command, "vuart-echo", 11))
		vuart_echo();
	else if (same(command, "echo", 5))
		echo();
	else if (same(command, "button", 7)) {
		power_button();
		for (u32 s = number(text, 0); s != 0; s--)
			sleep_ms(1000);
	} else if (same(command, "idle", 5)) {
		print("idle: sleeping\n");
		for (u32 s = number(text, 0xffffffff); s != 0; s--)
			sleep_ms(1000);
	} else if (same(command, "reboot", 7))
		reboot(*text != 0 ? text : "cold");
	else {
		print("demo: no command \"%s\"\n", command);
		return 0;
	}
	return 1;
}

void guest_main(void);
void guest_main(void)
{
	u32 commands = 0;

	console_init();
	print("\nacrn-dm demo guest: a small 32-bit program that looks around in its virtual machine.\n");
	interrupts_init();
	pci_scan();
	acpi_init();
	u32 timer_per_ms = timer_start();

	for (const char *word = boot_arguments(); *word != 0;) {
		char command[32] = { 0 }, text[192] = { 0 };
		u32 n = 0, c = 0, t = 0;

		if (same(word, "demo=", 5)) {
			const char *p = word + 5;

			for (; *p > ' ' && *p != ','; p++)
				if (c < sizeof(command) - 1)
					command[c++] = *p;
			if (*p == ',')
				for (p++; *p > ' '; p++)
					if (t < sizeof(text) - 1)
						text[t++] = *p;
			commands++;
			run(command, text, timer_per_ms);
		}
		while (word[n] > ' ')
			n++;
		while (word[n] != 0 && word[n] <= ' ')
			n++;
		word += n;
	}
	if (commands == 0)
		tour(timer_per_ms);
	power_off();
}
