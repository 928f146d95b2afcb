/*
 * hammer COUNT SEED: a guest that accesses ports, the HPET and PCI configuration space at random, by /dev/fake_acrn.
 * Prints how many accesses were answered. What ends or resets the VM on purpose is left out: nothing else may.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Where the platform's devices are; half of the accesses go there. */
static const struct { uint16_t base, size; } places[] = {
	{ 0x20, 2 }, { 0x40, 4 }, { 0x60, 5 }, { 0x70, 8 }, { 0x80, 8 }, { 0x92, 1 }, { 0xa0, 2 }, { 0xb2, 2 },
	{ 0xf4, 1 }, { 0x2e8, 8 }, { 0x2f8, 8 }, { 0x3b0, 48 }, { 0x3e8, 8 }, { 0x3f8, 8 }, { 0x400, 8 }, { 0x4d0, 2 },
	{ 0xcf8, 8 }, { 0x2000, 64 }, { 0x2040, 64 },
};

static uint64_t state;

static uint32_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

/* Reset register, reset by the keyboard controller, sleep and power-off: the only ways out a guest has. */
static int ends_vm(uint32_t port, uint32_t size, uint32_t value)
{
	for (uint32_t i = 0; i < size; i++) {
		uint32_t at = port + i, byte = value >> (8 * i) & 0xff;

		if (at == 0xcf9 || at == 0xf4) return 1;
		if (at == 0x64 && byte >= 0xf0) return 1;
		if (at == 0x405 && (byte & 0x20)) return 1;
		/* Output port of the keyboard controller: bit 0 is the reset line. */
		if (at == 0x60) return 1;
	}
	return port == 0x404;
}

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 1000;
	int fd = open("/dev/fake_acrn", O_RDWR);
	char line[128], answer[256];
	struct timespec begin, end;
	long done;

	state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	state = state * 0x9e3779b97f4a7c15ull + 1;
	if (fd < 0) {
		perror("/dev/fake_acrn");
		return 2;
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (done = 0; done < count; done++) {
		uint32_t kind = next() % 16, size = 1u << next() % 3, value = next(), is_write = next() & 1;
		int length;

		if (kind < 14) {
			uint32_t port = next() & 0xffff;

			if (kind < 8) {
				uint32_t place = next() % (sizeof places / sizeof *places);

				port = places[place].base + next() % places[place].size;
			}
			if (port + size > 0x10000) port = 0x10000 - size;
			if (is_write && ends_vm(port, size, value)) is_write = 0;
			length = snprintf(line, sizeof line, "pio %c %#x %u %#x timeout=20000\n", is_write ? 'w' : 'r', port, size, value);
		} else if (kind == 14) {
			length = snprintf(line, sizeof line, "mmio %c %#x %u %#x timeout=20000\n", is_write ? 'w' : 'r',
				0xfed00000 + (next() & 0x3ff & -size), size, value);
		} else {
			length = snprintf(line, sizeof line, "pci %c 0 %u %u %u %u %#x timeout=20000\n", is_write ? 'w' : 'r',
				next() % 8, next() % 2, next() & 0xff & -size, size, value);
		}
		if (write(fd, line, length) != length || read(fd, answer, sizeof answer) <= 0) {
			line[length - 1] = 0;
			printf("access %ld (%s) was not answered\n", done, line);
			break;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld accesses in %ld s\n", done, (long)(end.tv_sec - begin.tv_sec));
	return done != count;
}
