/*
 * Plays a guest's virtio driver on the rings of a device model that runs under the recorder (virtio.mjs), from
 * outside: it maps the guest's RAM, kicks, and measures how long requests take until they are in the used ring.
 *
 *   virtio-load blk OUT SECONDS DISK_BYTES ROW...     ROW: {r,w}{r,s}SIZE@DEPTH, e.g. rr4096@1 = random read
 *   virtio-load net OUT SECONDS TAP KICKS ROW...      ROW: rtt, tx, rx; KICKS: how many the script can carry out
 *
 * Started by the recorder: its parent. The rings are where the script put them (legacy layout). The driver polls: it asks
 * for no interrupts, so that how the recorder delivers them is not in the figures. One line of JSON a row goes to OUT.
 */
#include "guest-load.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* Where the script puts things, guest-physical. */
#define RING_GPA 0x4000000ull /* queue n: + n * RING_STRIDE */
#define RING_STRIDE 0x20000ull
#define SMALL_GPA 0x4100000ull /* headers, status bytes, indirect tables: one page a slot */

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, NO_INTERRUPT = 1, NO_NOTIFY = 1 };

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct ring {
	unsigned size;
	struct desc *desc;
	_Atomic uint16_t *avail, *used; /* u16 flags, u16 index, entries */
	uint16_t available, seen;
	int kick_fd; /* -1: by the script */
	unsigned index;
};

static void ring_init(struct ring *r, unsigned index, unsigned size)
{
	uint64_t base = RING_GPA + index * RING_STRIDE, avail = base + 16 * size;
	r->index = index;
	r->size = size;
	r->desc = (void *)(ram + base);
	r->avail = (void *)(ram + avail);
	r->used = (void *)(ram + ((avail + 6 + 2 * size + 4095) & ~4095ull));
	r->kick_fd = -1;
	r->avail[0] = NO_INTERRUPT;
}

static void offer(struct ring *r, unsigned head) { r->avail[2 + r->available++ % r->size] = head; }
static uint16_t used_index(const struct ring *r) { return atomic_load_explicit(&r->used[1], memory_order_acquire); }
static uint32_t used_id(const struct ring *r, uint16_t at) { return *(uint32_t *)((uint8_t *)r->used + 4 + 8 * (at % r->size)); }

static void publish(struct ring *r)
{
	static const uint64_t one = 1;
	atomic_store(&r->avail[1], r->available); /* sequentially consistent: before the flag is read */
	if (atomic_load(&r->used[0]) & NO_NOTIFY) return;
	kicks++;
	if (r->kick_fd < 0) script_kick();
	else if (write(r->kick_fd, &one, 8) != 8) die("kick: %s", strerror(errno));
}

static bool wait_used(struct ring *r, uint64_t timeout_ns)
{
	uint64_t end = now_ns() + timeout_ns;
	for (unsigned turns = 0; used_index(r) == r->seen;) {
		relax(&turns);
		if (turns % 4096 == 0 && now_ns() > end) return false;
	}
	return true;
}

/* Which of the eventfds the recorder was given is the kick of this queue: the one that makes it move. */
static bool find_kick(struct ring *r)
{
	static const uint64_t one = 1;
	char path[64], line[128];
	snprintf(path, sizeof path, "/proc/%d/fd", recorder);
	DIR *dir = opendir(path);
	int pidfd = syscall(SYS_pidfd_open, recorder, 0);
	if (!dir || pidfd < 0) die("recorder: %s", strerror(errno));
	for (struct dirent *e; (e = readdir(dir));) {
		char name[512];
		snprintf(name, sizeof name, "%s/%s", path, e->d_name);
		ssize_t n = readlink(name, line, sizeof line - 1);
		if (n < 0 || (line[n] = 0, !strstr(line, "[eventfd]"))) continue;
		int fd = syscall(SYS_pidfd_getfd, pidfd, atoi(e->d_name), 0);
		if (fd < 0) continue;
		if (write(fd, &one, 8) == 8 && wait_used(r, 2000000000)) { r->kick_fd = fd; closedir(dir); close(pidfd); return true; }
		close(fd);
	}
	closedir(dir);
	close(pidfd);
	return false;
}

/* Disks. */
static struct ring disk;
static uint64_t disk_bytes, sent_ns[MAX_DEPTH];

static void disk_slot(unsigned slot, bool is_write, unsigned size)
{
	uint64_t small = SMALL_GPA + slot * 4096;
	struct desc *table = (void *)(ram + small + 512);
	*(uint32_t *)(ram + small) = is_write ? 1 : 0;
	table[0] = (struct desc){ small, 16, NEXT, 1 };
	table[1] = (struct desc){ DATA_GPA + slot * (uint64_t)size, size, NEXT | (is_write ? 0 : WRITE), 2 };
	table[2] = (struct desc){ small + 16, 1, WRITE, 0 };
	disk.desc[slot] = (struct desc){ small + 512, 48, INDIRECT, 0 };
}

static void disk_send(unsigned slot, uint64_t offset)
{
	uint8_t *small = ram + SMALL_GPA + slot * 4096;
	*(uint64_t *)(small + 8) = offset / 512;
	small[16] = 0xff;
	sent_ns[slot] = now_ns();
	offer(&disk, slot);
}

static void disk_row(const char *row, double seconds, bool counts)
{
	struct traffic traffic = traffic_of(row, disk_bytes);
	unsigned size = traffic.size, depth = traffic.depth;
	uint64_t done = 0;
	sample_count = 0;
	kicks = 0;
	for (unsigned slot = 0; slot < depth; slot++) {
		disk_slot(slot, traffic.is_write, size);
		disk_send(slot, next_place(&traffic));
	}
	uint64_t begin = now_ns(), end = begin + seconds * 1e9, last = begin;
	unsigned in_flight = depth;
	publish(&disk);
	while (in_flight > 0) {
		if (!wait_used(&disk, 10000000000ull)) die("%s: no answer after %lu requests", row, done);
		last = now_ns();
		for (uint16_t now = used_index(&disk); disk.seen != now; disk.seen++) {
			unsigned slot = used_id(&disk, disk.seen);
			if (ram[SMALL_GPA + slot * 4096 + 16] != 0) die("%s: status %u", row, ram[SMALL_GPA + slot * 4096 + 16]);
			sample(last - sent_ns[slot]);
			done++;
			in_flight--;
			if (last < end) { disk_send(slot, next_place(&traffic)); in_flight++; }
		}
		if (disk.available != disk.avail[1]) publish(&disk);
	}
	if (counts) report(row, done, done * size, last - begin);
}

static void run_disk(char **rows)
{
	ring_init(&disk, 0, 64);
	/* The serial number: no medium has a part in the answer. */
	disk_slot(0, false, 4096);
	*(uint32_t *)(ram + SMALL_GPA) = 8;
	disk_send(0, 0);
	disk.avail[1] = disk.available;
	if (!find_kick(&disk)) die("no eventfd kicks the disk");
	disk.seen++;
	for (; *rows; rows++) {
		disk_row(*rows, row_seconds / 4, false);
		disk_row(*rows, row_seconds, true);
	}
}

/* Networks. The peer is a packet socket on the host's end of the tap. */
#define NET_QUEUE 1024
#define SENDS (NET_QUEUE / 2)
#define NET_HEADER 12
#define SMALL_FRAME 64
#define BULK_FRAME 1514
#define FRAME_STRIDE 2048
/* Of the kicks that the script carries out the first is for the receive queue, all others for the transmit queue: no
 * driver kicks a receive queue that is never empty. */
static struct ring receive, transmit;
static int peer;

static uint64_t frame_at(const struct ring *r, unsigned slot) { return DATA_GPA + (r->index * NET_QUEUE + slot) * (uint64_t)FRAME_STRIDE; }
static void make_frame(uint8_t *frame, unsigned length)
{
	memset(frame, 0x5a, length);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, "\x02\x00\x00\x00\x00\x01\x88\xb5", 8); /* a local experimental EtherType */
}
/* The C device model wants the header in a buffer of its own. */
static void send_slot(unsigned slot, unsigned length)
{
	uint64_t at = frame_at(&transmit, slot);
	memset(ram + at, 0, NET_HEADER);
	transmit.desc[2 * slot] = (struct desc){ at, NET_HEADER, NEXT, 2 * slot + 1 };
	transmit.desc[2 * slot + 1] = (struct desc){ at + NET_HEADER, length, 0, 0 };
	offer(&transmit, 2 * slot);
}
static void buffers(unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		unsigned slot = receive.available % NET_QUEUE;
		receive.desc[slot] = (struct desc){ frame_at(&receive, slot), FRAME_STRIDE, WRITE, 0 };
		offer(&receive, slot);
	}
	publish(&receive);
}
static void drain_peer(void)
{
	uint8_t frame[2048];
	while (recv(peer, frame, sizeof frame, MSG_DONTWAIT) >= 0 || errno == EINTR);
}

static void net_rtt(const char *row, double seconds)
{
	uint8_t frame[2048];
	uint64_t begin = now_ns(), end = begin + seconds * 1e9, done = 0;
	for (unsigned i = 0; i < SENDS; i++) make_frame(ram + frame_at(&transmit, i) + NET_HEADER, SMALL_FRAME);
	while (now_ns() < end && script_kicks_left > 8) {
		uint64_t sent = now_ns();
		unsigned turns = 0;
		send_slot(transmit.available % SENDS, SMALL_FRAME);
		publish(&transmit);
		while (recv(peer, frame, sizeof frame, MSG_DONTWAIT) < 0) {
			relax(&turns);
			if (turns % 4096 == 0 && now_ns() - sent > 5000000000ull) die("%s: frame %lu not seen by the peer", row, done);
		}
		if (send(peer, frame, SMALL_FRAME, 0) != SMALL_FRAME) die("peer: %s", strerror(errno));
		if (!wait_used(&receive, 5000000000ull)) die("%s: frame %lu not received", row, done);
		sample(now_ns() - sent);
		receive.seen++;
		done++;
		if (!wait_used(&transmit, 5000000000ull)) die("%s: frame %lu not given back", row, done);
		transmit.seen = used_index(&transmit);
		buffers(1);
	}
	report(row, done, 2 * done * SMALL_FRAME, now_ns() - begin);
}

static void net_tx(const char *row, double seconds)
{
	uint64_t begin = now_ns(), end = begin + seconds * 1e9, done = 0, last = begin;
	unsigned in_flight = 0;
	for (unsigned i = 0; i < SENDS; i++) make_frame(ram + frame_at(&transmit, i) + NET_HEADER, BULK_FRAME);
	for (;;) {
		bool goes_on = last < end && script_kicks_left > 8;
		for (; goes_on && in_flight < SENDS; in_flight++) send_slot(transmit.available % SENDS, BULK_FRAME);
		if (transmit.available != transmit.avail[1]) publish(&transmit);
		if (in_flight == 0) break;
		if (!wait_used(&transmit, 5000000000ull)) die("%s: no frame given back after %lu", row, done);
		uint16_t count = used_index(&transmit) - transmit.seen;
		transmit.seen += count;
		in_flight -= count;
		done += count;
		last = now_ns();
	}
	report(row, done, done * BULK_FRAME, last - begin);
}

static void net_rx(const char *row, double seconds)
{
	enum { WINDOW = 256, BATCH = 64 };
	static uint8_t frame[BULK_FRAME];
	struct iovec iov = { frame, sizeof frame };
	struct mmsghdr messages[BATCH];
	uint64_t begin = now_ns(), end = begin + seconds * 1e9, done = 0, last = begin;
	unsigned in_flight = 0;
	make_frame(frame, sizeof frame);
	for (unsigned i = 0; i < BATCH; i++) messages[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &iov, .msg_iovlen = 1 } };
	for (;;) {
		if (last < end && script_kicks_left > 8 && in_flight + BATCH <= WINDOW) {
			int sent = sendmmsg(peer, messages, BATCH, 0);
			if (sent < 0) die("peer: %s", strerror(errno));
			in_flight += sent;
		}
		if (in_flight == 0) break;
		/* A frame the tap had no room for never comes. */
		if (!wait_used(&receive, 500000000)) { if (last >= end) break; in_flight = 0; last = now_ns(); continue; }
		uint16_t count = used_index(&receive) - receive.seen;
		receive.seen += count;
		in_flight = in_flight > count ? in_flight - count : 0;
		done += count;
		buffers(count);
		last = now_ns();
	}
	report(row, done, done * BULK_FRAME, last - begin);
}

static void run_net(const char *tap, unsigned budget, char **rows)
{
	ring_init(&receive, 0, NET_QUEUE);
	ring_init(&transmit, 1, NET_QUEUE);
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = if_nametoindex(tap) };
	peer = socket(AF_PACKET, SOCK_RAW, htons(0x88b5));
	int bytes = 8 << 20;
	setsockopt(peer, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
	setsockopt(peer, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
	if (peer < 0 || bind(peer, (void *)&address, sizeof address)) die("peer on %s: %s", tap, strerror(errno));
	int ignore = 1;
	setsockopt(peer, SOL_PACKET, PACKET_IGNORE_OUTGOING, &ignore, sizeof ignore);
	open_script(budget);
	buffers(NET_QUEUE - 1);
	for (; *rows; rows++) {
		for (int warm = 1; warm >= 0; warm--) {
			out = warm ? fopen("/dev/null", "w") : results;
			sample_count = 0;
			kicks = 0;
			drain_peer();
			if (!strncmp(*rows, "direct", 6) && transmit.kick_fd < 0) {
				make_frame(ram + frame_at(&transmit, transmit.available % SENDS) + NET_HEADER, SMALL_FRAME);
				send_slot(transmit.available % SENDS, SMALL_FRAME);
				transmit.avail[1] = transmit.available;
				if (!find_kick(&transmit)) return;
				transmit.seen = used_index(&transmit);
				drain_peer();
			}
			/* First of all long enough for a device that gets faster when it has much to do. */
			double seconds = !warm ? row_seconds : transmit.seen == 0 ? 1 : row_seconds / 4;
			if (strstr(*rows, "rtt")) net_rtt(*rows, seconds);
			else if (strstr(*rows, "tx")) net_tx(*rows, seconds);
			else net_rx(*rows, seconds);
			if (warm) fclose(out);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc < 6) die("virtio-load blk|net OUT SECONDS ...");
	begin_load(argv[2], argv[3]);
	if (!strcmp(argv[1], "blk")) {
		disk_bytes = strtoull(argv[4], NULL, 0);
		run_disk(argv + 5);
	} else {
		run_net(argv[4], atoi(argv[5]), argv + 6);
		release_script();
	}
	fclose(results);
	return 0;
}
