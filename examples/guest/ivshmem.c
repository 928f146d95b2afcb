/*
 * ivshmem: memory shared between VMs, and doorbells (QEMU docs/specs/ivshmem-spec.rst).
 * BAR0 registers, BAR1 MSI-X table, BAR2 the memory.
 */
#include "guest.h"

enum { REG_INTR_MASK = 0x0, REG_INTR_STATUS = 0x4, REG_IV_POSITION = 0x8, REG_DOORBELL = 0xc };

/* What two guests agree on at the start of the shared memory. */
struct mailbox {
	volatile u32 state;
	volatile u32 receiver;          /* IVPosition of the one who reads */
	volatile u32 sender;            /* IVPosition of the one who writes */
	volatile u32 text_length;
	char text[224];
};
enum { STATE_READY = 0x59444552, STATE_SENT = 0x544e4553, STATE_TAKEN = 0x4e4b4154 };    /* "REDY" "SENT" "TAKN" */
enum { VECTOR_MESSAGE = 1, VECTOR_TAKEN = 2 };
enum { COUNTER_OFFSET = 0x100, TEST_OFFSET = 0x1000 };
enum { PATIENCE_MS = 60000 };

static struct function *device;
static u32 registers, memory, memory_size, own_id;

int ivshmem_init(void)
{
	device = pci_find(0x1af4, 0x1110, 0);
	if (device == 0)
		return 0;
	pci_enable(device, VECTOR_IVSHMEM);
	registers = device->bars[0].address;
	memory = device->bars[2].address;
	memory_size = device->bars[2].size;
	own_id = registers != 0 ? read32(registers + REG_IV_POSITION) : 0;
	return memory != 0;
}

static void ring(u32 peer, u32 vector)
{
	write32(registers + REG_DOORBELL, peer << 16 | vector);
}

/* Different words at every place of a block, then read back. */
static u32 test_block(u32 offset, u32 bytes)
{
	u32 wrong = 0;

	for (u32 i = 0; i < bytes; i += 4)
		write32(memory + offset + i, (offset + i) * 2654435761u);
	for (u32 i = 0; i < bytes; i += 4)
		wrong += read32(memory + offset + i) != (offset + i) * 2654435761u;
	return wrong;
}

void ivshmem_tour(void)
{
	label("IVPosition");
	print("%u (the number other VMs ring us by)\n", own_id);
	label("registers");
	print("IntrMask 0x%x, IntrStatus 0x%x\n", read32(registers + REG_INTR_MASK), read32(registers + REG_INTR_STATUS));
	label("shared memory");
	print("%u KiB at %p, first word 0x%08x\n", memory_size >> 10, (void *)memory, read32(memory));
	u32 wrong = test_block(TEST_OFFSET, 4096) + test_block(memory_size - 4096, 4096);
	label("");
	print("wrote and read back 8 KiB at its start and end: %s\n", wrong == 0 ? "good" : "WRONG");
	write32(memory + TEST_OFFSET, 0x44434241);
	write8(memory + TEST_OFFSET + 1, 'x');
	label("");
	print("byte access inside a word: %s\n", read32(memory + TEST_OFFSET) == 0x44437841 ? "good" : "WRONG");
	label("doorbell");
	if (device->msix == 0) {
		print("none (a dm:/ region has no interrupts; hv:/ regions do)\n");
		return;
	}
	u32 heard = 0;
	for (u32 v = 0; v < device->msix_vectors && v < 8; v++) {
		u32 before = interrupts[VECTOR_IVSHMEM + v];

		ring(own_id, v);
		heard += (u32)wait_interrupt((u8)(VECTOR_IVSHMEM + v), before, 200);
	}
	print("rang ourselves on %u vectors, %u MSI-X interrupts came: %s\n", device->msix_vectors, heard,
	      heard == device->msix_vectors ? "good" : "WRONG");
}

volatile u32 *ivshmem_counter(void)
{
	return (volatile u32 *)(memory + COUNTER_OFFSET);
}

/* The receiver says who it is; the sender writes and rings; the receiver takes the text and rings back. */
int ivshmem_send(const char *text)
{
	struct mailbox *box = (struct mailbox *)memory;
	u32 heard = interrupts[VECTOR_IVSHMEM + VECTOR_TAKEN];
	u32 n = length(text);

	if (n > sizeof(box->text))
		n = sizeof(box->text);
	print("  we are peer %u, waiting for a receiver\n", own_id);
	for (u32 start = ticks; box->state != STATE_TAKEN || interrupts[VECTOR_IVSHMEM + VECTOR_TAKEN] == heard; idle()) {
		if (ticks - start > PATIENCE_MS / TICK_MS) {
			print("ivshmem-send: nobody took it\n");
			return 0;
		}
		if (box->state != STATE_READY)
			continue;
		copy(box->text, text, n);
		box->text_length = n;
		box->sender = own_id;
		box->state = STATE_SENT;
		ring(box->receiver, VECTOR_MESSAGE);
		print("  wrote \"%s\" and rang peer %u, vector %u\n", text, box->receiver, VECTOR_MESSAGE);
	}
	print("ivshmem-send: peer %u rang back, vector %u: taken\n", box->receiver, VECTOR_TAKEN);
	return 1;
}

int ivshmem_receive(void)
{
	struct mailbox *box = (struct mailbox *)memory;
	char text[sizeof(box->text) + 1];
	u32 heard = interrupts[VECTOR_IVSHMEM + VECTOR_MESSAGE];

	box->receiver = own_id;
	box->state = STATE_READY;
	print("  we are peer %u, ready to receive\n", own_id);
	if (!wait_interrupt(VECTOR_IVSHMEM + VECTOR_MESSAGE, heard, PATIENCE_MS) || box->state != STATE_SENT) {
		print("ivshmem-recv: nothing came (state 0x%x)\n", box->state);
		return 0;
	}
	u32 n = box->text_length < sizeof(box->text) ? box->text_length : sizeof(box->text);
	copy(text, box->text, n);
	text[n] = 0;
	print("ivshmem-recv: peer %u wrote \"%s\" and rang vector %u\n", box->sender, text, VECTOR_MESSAGE);
	box->state = STATE_TAKEN;
	ring(box->sender, VECTOR_TAKEN);
	return 1;
}
