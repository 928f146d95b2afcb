/* PCI by configuration mechanism 1: the address goes to port 0xcf8, the data is at 0xcfc. */
#include "guest.h"

enum { COMMAND = 0x04, CLASS = 0x08, HEADER = 0x0c, BAR0 = 0x10, CAPABILITIES = 0x34, INTERRUPT = 0x3c };
enum { COMMAND_IO = 1, COMMAND_MEMORY = 2, COMMAND_MASTER = 4, STATUS_CAPABILITIES = 1 << 20 };
enum { CAP_MSIX = 0x11, MSIX_ENABLE = 1u << 31, MSIX_MASK_ALL = 1u << 30 };

struct function functions[MAX_FUNCTIONS];
u32 function_count;

u32 pci_read(const struct function *f, u32 offset)
{
	outl(0xcf8, 0x80000000u | (u32)f->bus << 16 | (u32)f->device << 11 | (u32)f->function << 8 | (offset & 0xfc));
	return inl(0xcfc);
}

void pci_write(const struct function *f, u32 offset, u32 value)
{
	outl(0xcf8, 0x80000000u | (u32)f->bus << 16 | (u32)f->device << 11 | (u32)f->function << 8 | (offset & 0xfc));
	outl(0xcfc, value);
}

/* All ones written to a BAR come back as its size mask; decoding is off meanwhile. */
static void size_bars(struct function *f)
{
	u32 command = pci_read(f, COMMAND) & 0xffff;

	pci_write(f, COMMAND, command & ~(u32)(COMMAND_IO | COMMAND_MEMORY));
	for (u32 i = 0; i < 6; i++) {
		u32 offset = BAR0 + 4 * i;
		u32 value = pci_read(f, offset);

		pci_write(f, offset, 0xffffffff);
		u32 mask = pci_read(f, offset);
		pci_write(f, offset, value);
		if (mask == 0 || mask == 0xffffffff)
			continue;
		struct bar *bar = &f->bars[i];
		bar->io = value & 1;
		bar->wide = !bar->io && (value & 6) == 4;
		bar->prefetchable = !bar->io && (value & 8) != 0;
		bar->address = value & (bar->io ? ~3u : ~15u);
		bar->size = bar->io ? (~(mask & ~3u) + 1) & 0xffff : ~(mask & ~15u) + 1;
		if (bar->wide) {
			if (pci_read(f, offset + 4) != 0)
				bar->address = 0;       /* above 4 GiB: out of this guest's reach */
			i++;
		}
	}
	pci_write(f, COMMAND, command);
}

static void find_msix(struct function *f)
{
	if ((pci_read(f, COMMAND) & STATUS_CAPABILITIES) == 0)
		return;
	u32 at = pci_read(f, CAPABILITIES) & 0xfc;
	for (u32 patience = 48; at >= 0x40 && patience != 0; patience--) {
		u32 head = pci_read(f, at);

		if ((head & 0xff) == CAP_MSIX) {
			u32 table = pci_read(f, at + 4);

			f->msix = (u8)at;
			f->msix_vectors = (u16)((head >> 16 & 0x7ff) + 1);
			f->msix_table = f->bars[table & 7].address + (table & ~7u);
			return;
		}
		at = head >> 8 & 0xfc;
	}
}

static void add_function(struct function *f, u32 id)
{
	u32 class = pci_read(f, CLASS);

	f->vendor_id = (u16)id;
	f->device_id = (u16)(id >> 16);
	f->class_code = class >> 8;
	f->revision = (u8)class;
	f->pin = (u8)(pci_read(f, INTERRUPT) >> 8);
	f->line = (u8)pci_read(f, INTERRUPT);
	if ((pci_read(f, HEADER) >> 16 & 0x7f) == 0) {
		size_bars(f);
		find_msix(f);
	}
}

void pci_scan(void)
{
	for (u32 device = 0; device < 32; device++) {
		for (u32 function = 0; function < 8 && function_count < MAX_FUNCTIONS; function++) {
			struct function *f = &functions[function_count];

			*f = (struct function){ .device = (u8)device, .function = (u8)function };
			u32 id = pci_read(f, 0);
			if (id == 0xffffffff || id == 0) {
				if (function == 0)
					break;
				continue;
			}
			function_count++;
			add_function(f, id);
			if (function == 0 && (pci_read(f, HEADER) & 0x800000) == 0)
				break;          /* not a multifunction device */
		}
	}
}

static const char *name(const struct function *f)
{
	static const struct { u16 vendor, device; const char *name; } known[] = {
		{ 0x1af4, 0x1110, "ivshmem: memory shared between VMs" },
		{ 0x9710, 0x9900, "MCS9900: PCI vUART" },
		{ 0x1af4, 0x1000, "virtio-net" },
		{ 0x1af4, 0x1001, "virtio-blk" },
		{ 0x1af4, 0x1003, "virtio-console" },
		{ 0x1af4, 0x1005, "virtio-rnd" },
		{ 0x8086, 0x25ab, "i6300ESB watchdog" },
	};
	for (u32 i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].vendor == f->vendor_id && known[i].device == f->device_id)
			return known[i].name;
	switch (f->class_code >> 8) {
	case 0x0600: return "host bridge";
	case 0x0601: return "ISA bridge (LPC)";
	case 0x0604: return "PCI bridge";
	case 0x0100: return "SCSI controller";
	case 0x0101: return "IDE controller";
	case 0x0106: return "SATA controller";
	case 0x0200: return "Ethernet controller";
	case 0x0300: return "VGA controller";
	case 0x0500: return "RAM controller";
	case 0x0680: return "bridge, other";
	case 0x0700: return "serial controller";
	case 0x0780: return "communication controller";
	case 0x0c03: return "USB controller";
	default: return "";
	}
}

static void print_size(u32 size)
{
	if (size >= 1 << 20)
		print("%4u MiB", size >> 20);
	else if (size >= 1 << 10)
		print("%4u KiB", size >> 10);
	else
		print("%4u B", size);
}

void pci_print(void)
{
	for (u32 i = 0; i < function_count; i++) {
		const struct function *f = &functions[i];

		print("  %02x:%02x.%x  %04x:%04x  class %06x  %s\n", f->bus, f->device, f->function, f->vendor_id, f->device_id,
		      f->class_code, name(f));
		for (u32 b = 0; b < 6; b++) {
			const struct bar *bar = &f->bars[b];

			if (bar->size == 0)
				continue;
			print("           BAR%u  %-5s  ", b, bar->io ? "io" : bar->wide ? "mem64" : "mem32");
			if (bar->wide && bar->address == 0)
				print("above 4 GiB ");
			else
				print("%p  ", (void *)bar->address);
			print_size(bar->size);
			print("%s\n", bar->prefetchable ? ", prefetchable" : "");
		}
		if (f->msix != 0)
			print("           MSI-X %u vector%s, table at %p\n", f->msix_vectors, f->msix_vectors == 1 ? "" : "s",
			      (void *)f->msix_table);
		if (f->pin != 0)
			print("           INT%c#  line %u\n", 'A' + f->pin - 1, f->line);
	}
}

struct function *pci_find(u16 vendor_id, u16 device_id, u32 nth)
{
	for (u32 i = 0; i < function_count; i++)
		if (functions[i].vendor_id == vendor_id && functions[i].device_id == device_id && nth-- == 0)
			return &functions[i];
	return 0;
}

void pci_enable(struct function *f, u8 vector_base)
{
	pci_write(f, COMMAND, (pci_read(f, COMMAND) & 0xffff) | COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER);
	if (f->msix == 0)
		return;
	pci_write(f, f->msix, (pci_read(f, f->msix) & 0xffff) | MSIX_ENABLE | MSIX_MASK_ALL);
	for (u32 v = 0; v < f->msix_vectors && v < 8; v++) {
		u32 entry = f->msix_table + 16 * v;

		write32(entry + 0, 0xfee00000u | lapic_id() << 12);     /* message address: the local APIC */
		write32(entry + 4, 0);
		write32(entry + 8, vector_base + v);                    /* message data: fixed, edge, vector */
		write32(entry + 12, 0);                                 /* not masked */
	}
	pci_write(f, f->msix, ((pci_read(f, f->msix) & 0xffff) | MSIX_ENABLE) & ~MSIX_MASK_ALL);
}
