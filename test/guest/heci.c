/*
 * heci: a driver of virtio-heci in user space, for a guest whose kernel has none (Linux has none but in ACRN's own tree).
 * Legacy virtio by ports, rings in a huge page, no interrupts. Says what it finds in lines with "OK " and "BAD ", and
 * "STAGE ..." where the host is to do something. Root, in a guest that runs nothing else.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { HUGE = 2 << 20, PAGE = 4096, QUEUE = 64, RX_BUFFERS = 16, MESSAGE = 512, HEADER = 4 };
/* Legacy registers (virtio 1.2 4.1.4.8), and the device's own behind them (struct mei_virtio_cfg). */
enum { DRIVER_FEATURES = 4, QUEUE_PFN = 8, QUEUE_SIZE = 12, QUEUE_SELECT = 14, QUEUE_NOTIFY = 16, STATUS = 18 };
enum { HW_READY = 20 + 4, HOST_RESET = 20 + 5 };
/* Where things are in the page: a ring each, then buffers. */
enum { RING_STRIDE = 0x4000, USED_AT = 0x1000, AVAIL_AT = QUEUE * 16, RX_AT = 0x10000, TX_AT = 0x20000 };
/* Host bus messages (drivers/misc/mei/hw.h). */
enum { START = 1, ENUMERATE = 4, PROPERTIES = 5, CONNECT = 6, FLOW_CONTROL = 8, RESPONSE = 0x80 };
enum { ME = 32, HOST = 7 };

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct avail { uint16_t flags; volatile uint16_t index; uint16_t ring[QUEUE]; };
struct used { uint16_t flags; volatile uint16_t index; struct { uint32_t id, length; } ring[QUEUE]; };

static uint16_t port;
static uint8_t *page;
static uint64_t page_address;
static uint16_t seen[2];

static void die(const char *what)
{
	printf("BAD %s\n", what);
	exit(1);
}
static void result(bool is_good, const char *what) { printf("%s %s\n", is_good ? "OK" : "BAD", what); fflush(stdout); }
static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}
static struct desc *descs(int queue) { return (void *)(page + queue * RING_STRIDE); }
static struct avail *avail(int queue) { return (void *)(page + queue * RING_STRIDE + AVAIL_AT); }
static struct used *used(int queue) { return (void *)(page + queue * RING_STRIDE + USED_AT); }

/* The function's ports, which begin to answer. */
static void find_device(void)
{
	char path[300], text[320];
	DIR *dir = opendir("/sys/bus/pci/devices");
	if (!dir) die("no PCI");
	for (struct dirent *e; (e = readdir(dir));) {
		unsigned vendor = 0, device = 0, bar = 0;
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", e->d_name);
		int fd = open(path, O_RDWR);
		if (fd < 0) continue;
		if (pread(fd, &vendor, 2, 0) == 2 && pread(fd, &device, 2, 2) == 2 && vendor == 0x8086 && device == 0x8602) {
			uint16_t command = 5; /* I/O space, bus master */
			if (pread(fd, &bar, 4, 0x10) != 4 || !(bar & 1) || pwrite(fd, &command, 2, 4) != 2) die("the function's BAR");
			port = bar & ~3u;
			snprintf(text, sizeof text, "found at %s, ports at %#x", e->d_name, port);
			result(true, text);
		}
		close(fd);
	}
	closedir(dir);
	if (!port || iopl(3) != 0) die("no virtio-heci");
}

static void get_page(void)
{
	int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY);
	if (fd < 0 || write(fd, "2", 1) != 1) die("huge pages");
	close(fd);
	page = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
	if (page == MAP_FAILED) die("a huge page");
	memset(page, 0, HUGE);
	uint64_t entry;
	fd = open("/proc/self/pagemap", O_RDONLY);
	if (pread(fd, &entry, 8, (uintptr_t)page / PAGE * 8) != 8) die("pagemap");
	close(fd);
	page_address = (entry & ((1ull << 55) - 1)) * PAGE;
	if (page_address == 0) die("its address");
}

/* Make a descriptor available. */
static void offer(int queue, int index, uint32_t at, uint32_t length, uint16_t flags)
{
	descs(queue)[index] = (struct desc){ page_address + at, length, flags, 0 };
	struct avail *a = avail(queue);
	a->ring[a->index % QUEUE] = index;
	__sync_synchronize();
	a->index++;
	__sync_synchronize();
	outw(queue, port + QUEUE_NOTIFY);
}

static void start_device(void)
{
	outb(0, port + STATUS);
	outb(1, port + STATUS);
	outb(3, port + STATUS);
	outl(0, port + DRIVER_FEATURES);
	for (int queue = 0; queue < 2; queue++) {
		outw(queue, port + QUEUE_SELECT);
		if (inw(port + QUEUE_SIZE) != QUEUE) die("queue size");
		avail(queue)->flags = 1;
		outl((page_address + queue * RING_STRIDE) / PAGE, port + QUEUE_PFN);
	}
	outb(7, port + STATUS);
	for (int i = 0; i < RX_BUFFERS; i++) offer(0, i, RX_AT + i * MESSAGE, MESSAGE, 2);
}

static bool wait_ready(int wanted, double seconds)
{
	for (double end = now() + seconds; now() < end; usleep(1000)) if (inb(port + HW_READY) == wanted) return true;
	return false;
}

static void send_piece(int me, int host, const void *bytes, unsigned length, bool is_complete)
{
	uint32_t header = me | host << 8 | length << 16 | (is_complete ? 0x80000000u : 0);
	memcpy(page + TX_AT, &header, HEADER);
	memcpy(page + TX_AT + HEADER, bytes, length);
	offer(1, 0, TX_AT, HEADER + length, 0);
	for (double end = now() + 60; used(1)->index == seen[1];) if (now() > end) die("the device takes no message");
	seen[1]++;
}

/* The next piece for us. @returns its length, -1 when none comes. */
static int receive(uint32_t *header, uint8_t *bytes, double seconds)
{
	for (double end = now() + seconds; used(0)->index == seen[0]; usleep(200)) if (now() > end) return -1;
	__sync_synchronize();
	int index = used(0)->ring[seen[0] % QUEUE].id;
	int length = (int)used(0)->ring[seen[0] % QUEUE].length - HEADER;
	seen[0]++;
	if (length < 0) die("an empty buffer");
	memcpy(header, page + RX_AT + index * MESSAGE, HEADER);
	memcpy(bytes, page + RX_AT + index * MESSAGE + HEADER, length);
	offer(0, index, RX_AT + index * MESSAGE, MESSAGE, 2);
	return length;
}

/* A host bus message, and its answer. @returns its length. */
static int bus(const uint8_t *request, unsigned length, uint8_t *answer)
{
	uint32_t header;
	send_piece(0, 0, request, length, true);
	int got = receive(&header, answer, 60);
	return got >= 0 && (header & 0xffff) == 0 ? got : -1;
}

static void give_credit(void)
{
	const uint8_t credit[8] = { FLOW_CONTROL, ME, HOST };
	send_piece(0, 0, credit, sizeof credit, true);
}

/* What comes for us; flow control is counted. @returns its length, whole. */
static int credits;
static int receive_message(uint8_t *message, double seconds)
{
	int total = 0;
	for (;;) {
		uint32_t header;
		uint8_t piece[MESSAGE];
		int length = receive(&header, piece, seconds);
		if (length < 0) return -1;
		if ((header & 0xffff) == 0) {
			if (piece[0] == FLOW_CONTROL && piece[1] == ME && piece[2] == HOST) credits++;
			continue;
		}
		if ((header & 0xffff) != (ME | HOST << 8) || (header >> 16 & 0x1ff) != (unsigned)length) return -1;
		memcpy(message + total, piece, length);
		total += length;
		if (header >> 31) return total;
	}
}

static bool connect_client(void)
{
	const uint8_t request[4] = { CONNECT, ME, HOST };
	uint8_t answer[MESSAGE];
	uint32_t header;
	if (bus(request, sizeof request, answer) != 4) return false;
	if (answer[0] != (CONNECT | RESPONSE) || answer[1] != ME || answer[2] != HOST || answer[3] != 0) return false;
	return receive(&header, answer, 60) == 8 && answer[0] == FLOW_CONTROL && answer[1] == ME && answer[2] == HOST;
}

/* A message to the engine, which sends it back reversed. */
static bool echo(const uint8_t *bytes, int length)
{
	static uint8_t answer[1 << 16];
	const int most = MESSAGE - HEADER;
	give_credit();
	for (int at = 0; at < length; at += most) {
		int part = length - at < most ? length - at : most;
		send_piece(ME, HOST, bytes + at, part, at + part == length);
	}
	if (receive_message(answer, 60) != length) return false;
	for (int i = 0; i < length; i++) if (answer[i] != bytes[length - 1 - i]) return false;
	return true;
}

static void ask_the_engine(void)
{
	static const uint8_t uuid[16] = { 0x15, 0x67, 0x6a, 0x8e, 0xbc, 0x9a, 0x43, 0x40, 0x88, 0xef, 0x9e, 0x39, 0xc6, 0xf6, 0x3e, 0x0f };
	uint8_t answer[MESSAGE];
	int length = bus((const uint8_t[]){ START, 0, 0, 2 }, 4, answer);
	result(length == 4 && answer[0] == (START | RESPONSE) && answer[1] == 1 && answer[3] == 2, "version 2.0");
	length = bus((const uint8_t[]){ ENUMERATE, 0, 0, 0 }, 4, answer);
	result(length == 36 && answer[0] == (ENUMERATE | RESPONSE) && answer[8] == 3, "two clients, at 32 and 33");
	length = bus((const uint8_t[]){ PROPERTIES, ME, 0, 0 }, 4, answer);
	result(length == 28 && answer[2] == 0 && memcmp(answer + 4, uuid, 16) == 0 && answer[24] == (1500 & 0xff) && answer[25] == 1500 >> 8,
		"properties of the first");
	length = bus((const uint8_t[]){ CONNECT, ME + 1, HOST, 0 }, 4, answer);
	result(length == 4 && answer[3] == 1, "the engine refuses the one it does not know");
}

int main(void)
{
	static uint8_t large[1200];
	find_device();
	get_page();
	start_device();
	outb(0, port + HOST_RESET);
	result(wait_ready(1, 60), "the engine is ready");
	ask_the_engine();
	result(connect_client(), "connected");
	result(echo((const uint8_t *)"hello", 5), "a message and its answer");
	result(echo((const uint8_t *)"later", 5), "an answer that takes a moment");
	for (unsigned i = 0; i < sizeof large; i++) large[i] = i * 7;
	result(echo(large, sizeof large), "a message of three pieces");
	send_piece(ME, HOST, "busy", 4, true);
	result(echo((const uint8_t *)"again", 5), "a message the engine takes later");
	bool all = true;
	for (int i = 0; i < 200; i++) all = all && echo(large + i, 1 + i * 5 % 900);
	result(all, "200 messages");
	result(credits >= 204, "a credit for each");

	printf("STAGE reset\n");
	fflush(stdout);
	sleep(5);
	give_credit();
	send_piece(ME, HOST, "reset", 5, true);
	result(wait_ready(0, 60), "the engine is reset");
	sleep(2);
	result(inb(port + HW_READY) == 0, "and away");
	printf("STAGE back\n");
	fflush(stdout);
	result(wait_ready(1, 120), "it is there again");
	/* What was under way is forgotten. */
	uint32_t header;
	while (receive(&header, large, 1) >= 0);
	result(connect_client(), "connected again");
	result(echo((const uint8_t *)"as before", 9), "a message after the reset");
	outb(0, port + STATUS);
	return 0;
}
