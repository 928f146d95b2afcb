/* ACPI, as much as power off needs: RSDP, RSDT, FADT, and \_S5 in the DSDT (ACPI 6.5, chapters 5.2 and 7.3.4). */
#include "guest.h"

enum { SCI_EN = 1, PWRBTN = 1 << 8, SLP_EN = 1 << 13 };

static u32 rsdp, fadt, dsdt;
static u16 pm1a_control = 0x404, pm1a_event = 0x400, smi_command;
static u8 pm1_event_length = 4, acpi_enable, sleep_type = 5;
static u8 found_s5;

static void find_s5(void)
{
	u32 end = dsdt + read32(dsdt + 4);

	for (u32 at = dsdt + 36; at + 12 < end; at++) {
		if (!same((const char *)at, "_S5_\x12", 5))
			continue;
		/* PackageOp, PkgLength of 1 to 4 bytes, element count, then the first element as AML integer */
		u32 element = at + 5 + (read8(at + 5) >> 6) + 2;
		u8 op = read8(element);
		sleep_type = op == 0x0a ? read8(element + 1) : op == 0x01 ? 1 : 0;
		found_s5 = 1;
		return;
	}
}

void acpi_init(void)
{
	for (u32 at = 0xe0000; at < 0x100000 && rsdp == 0; at += 16)
		if (same((const char *)at, "RSD PTR ", 8))
			rsdp = at;
	if (rsdp == 0)
		return;
	u32 rsdt = read32(rsdp + 16);
	for (u32 at = rsdt + 36; at < rsdt + read32(rsdt + 4); at += 4)
		if (same((const char *)read32(at), "FACP", 4))
			fadt = read32(at);
	if (fadt == 0)
		return;
	dsdt = read32(fadt + 40);
	smi_command = (u16)read32(fadt + 48);
	acpi_enable = read8(fadt + 52);
	pm1a_event = (u16)read32(fadt + 56);
	pm1a_control = (u16)read32(fadt + 64);
	pm1_event_length = read8(fadt + 88);
	find_s5();
}

void acpi_print(void)
{
	label("RSDP");
	if (rsdp == 0) {
		print("not found, using PM1a control port 0x%x and sleep type %u\n", pm1a_control, sleep_type);
		return;
	}
	print("%p\n", (void *)rsdp);
	u32 rsdt = read32(rsdp + 16);
	label("tables");
	for (u32 at = rsdt + 36; at < rsdt + read32(rsdt + 4); at += 4) {
		const char *s = (const char *)read32(at);

		print("%c%c%c%c ", s[0], s[1], s[2], s[3]);
	}
	print("%s\n", dsdt != 0 ? "DSDT" : "");
	label("PM1a control");
	print("port 0x%x\n", pm1a_control);
	label("\\_S5");
	print("sleep type %u%s\n", sleep_type, found_s5 ? "" : " (no \\_S5 in the DSDT: a guess)");
}

/* In legacy mode the hardware is handed over by a command first (ACPI 6.5 §4.8.3.2 SCI_EN). */
static void acpi_mode(void)
{
	if (smi_command == 0 || acpi_enable == 0 || (inw(pm1a_control) & SCI_EN) != 0)
		return;
	outb(smi_command, acpi_enable);
	for (u32 patience = 1000; patience != 0 && (inw(pm1a_control) & SCI_EN) == 0; patience--)
		;
}

/* Status is looked at, no interrupt is waited for (ACPI 6.5 §4.8.3.1: enable register behind the status register). */
void power_button(void)
{
	acpi_mode();
	outw(pm1a_event, PWRBTN);
	outw((u16)(pm1a_event + pm1_event_length / 2), PWRBTN);
	print("button: waiting\n");
	while ((inw(pm1a_event) & PWRBTN) == 0)
		sleep_ms(20);
	outw(pm1a_event, PWRBTN);
	print("button: pressed\n");
}

void power_off(void)
{
	print("\nGoodbye: writing sleep type %u and SLP_EN to port 0x%x.\n", sleep_type, pm1a_control);
	acpi_mode();
	outw(pm1a_control, (u16)((inw(pm1a_control) & SCI_EN) | (u32)sleep_type << 10 | SLP_EN));
	sleep_ms(2000);                 /* it may take a moment */
	print("Still here: the machine did not power off.\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}
