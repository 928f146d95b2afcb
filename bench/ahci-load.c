/*
 * Plays a guest's AHCI driver on a device model that runs under the recorder (ahci.mjs): it fills command slots in the
 * guest's RAM and measures how long commands take until their byte counts are there.
 *
 *   ahci-load OUT SECONDS DISK_BYTES KICKS ROW...     ROW: as in guest-load.h, queued commands (NCQ); with `,dma` behind
 *                                                     it READ and WRITE DMA EXT; `kick`: the exits of either, that
 *                                                     issue nothing; KICKS: how many the script can carry out
 *
 * The port is started by the script, with all interrupts off. A kick is a vCPU's: the script reads which slots are to be
 * issued, writes PxSACT (queued commands only) and PxCI, and says that the guest goes on. These two writes are the only
 * exits: that a command is over the driver sees in its header's byte count (PRDBC), which both programs write for queued
 * commands, too, and looks for when the exit is over, as a vCPU.
 */
#include "guest-load.h"

/* As in ahci.mjs. */
#define LIST_GPA 0x4000000ull
#define FRAMES_GPA 0x4001000ull
#define WENT_ON_GPA 0x4002000ull /* kicks that are over */
#define ISSUE_GPA 0x4010000ull   /* for each kick the slots */
#define TABLE_GPA 0x4100000ull
#define TABLE_STRIDE 0x100u

enum { H2D = 0x27, IS_COMMAND = 0x80, LBA_MODE = 0x40, HEADER_WRITE = 1 << 6, FIS_WORDS = 5, TABLE_PRDT = 0x80 };
enum { READ_DMA_EXT = 0x25, WRITE_DMA_EXT = 0x35, READ_FPDMA = 0x60, WRITE_FPDMA = 0x61 };
enum { SLOTS = 32, STATUS_D2H = 0x42, STATUS_SDB = 0x5a };

struct header { uint32_t flags; _Atomic uint32_t moved; uint64_t table; uint32_t reserved[4]; };
struct region { uint64_t address; uint32_t reserved, length; };

static struct header *list;
static _Atomic uint32_t *went_on, *issue;
static uint64_t sent_ns[SLOTS];

static void prepare(unsigned slot, const struct traffic *traffic, bool is_queued)
{
	uint64_t table = TABLE_GPA + slot * TABLE_STRIDE;
	uint8_t *fis = ram + table;
	unsigned sectors = traffic->size / 512;
	memset(fis, 0, TABLE_STRIDE);
	fis[0] = H2D;
	fis[1] = IS_COMMAND;
	fis[2] = is_queued ? (traffic->is_write ? WRITE_FPDMA : READ_FPDMA) : traffic->is_write ? WRITE_DMA_EXT : READ_DMA_EXT;
	fis[7] = LBA_MODE;
	fis[is_queued ? 3 : 12] = sectors;
	fis[is_queued ? 11 : 13] = sectors >> 8;
	if (is_queued) fis[12] = slot << 3;
	*(struct region *)(fis + TABLE_PRDT) = (struct region){ DATA_GPA + slot * (uint64_t)traffic->size, 0, traffic->size - 1 };
	list[slot] = (struct header){ .flags = 1 << 16 | (traffic->is_write ? HEADER_WRITE : 0) | FIS_WORDS, .table = table };
}

static void address(unsigned slot, uint64_t offset)
{
	static const uint8_t at[6] = { 4, 5, 6, 8, 9, 10 };
	uint8_t *fis = ram + TABLE_GPA + slot * TABLE_STRIDE;
	for (unsigned i = 0; i < 6; i++) fis[at[i]] = offset / 512 >> 8 * i;
	atomic_store(&list[slot].moved, 0);
	sent_ns[slot] = now_ns();
}

/* Leave the guest, and come back. */
static void kick(const char *row, uint32_t slots)
{
	unsigned turns = 0, kick = script_kicks;
	uint64_t begin = now_ns();
	atomic_store(&issue[kick], slots);
	kicks++;
	script_kick();
	while (atomic_load(went_on) != kick + 1) {
		relax(&turns);
		if (turns % 4096 == 0 && now_ns() - begin > 10000000000ull) die("%s: the script is gone", row);
	}
}

/* @returns slots whose commands are over, when there is one. */
static uint32_t wait_over(const char *row, uint32_t pending, unsigned size)
{
	unsigned turns = 0;
	uint64_t begin = now_ns();
	for (;;) {
		uint32_t over = 0;
		for (uint32_t left = pending; left; left &= left - 1) {
			unsigned slot = __builtin_ctz(left);
			if (atomic_load(&list[slot].moved) == size) over |= 1u << slot;
		}
		if (over) return over;
		relax(&turns);
		if (turns % 4096 == 0 && now_ns() - begin > 10000000000ull)
			die("%s: no answer, status %#x %#x", row, ram[FRAMES_GPA + STATUS_D2H], ram[FRAMES_GPA + STATUS_SDB]);
	}
}

static void run_kicks(const char *row, double seconds, unsigned budget)
{
	uint64_t begin = now_ns(), end = begin + seconds * 1e9, last = begin;
	sample_count = 0;
	for (kicks = 0; last < end && kicks < budget;) {
		uint64_t before = last;
		kick(row, 0);
		last = now_ns();
		sample(last - before);
	}
	report(row, kicks, 0, last - begin);
}

/* @param budget kicks it may take. */
static void run_row(const char *row, uint64_t disk_bytes, double seconds, unsigned budget)
{
	if (!strncmp(row, "kick", 4)) { run_kicks(row, seconds, budget); return; }
	struct traffic traffic = traffic_of(row, disk_bytes);
	bool is_queued = !strstr(row, ",dma");
	if (traffic.depth > (is_queued ? SLOTS : 1)) die("row %s", row);
	uint32_t next = (uint32_t)(1ull << traffic.depth) - 1, pending = 0;
	uint64_t done = 0;
	sample_count = 0;
	kicks = 0;
	for (unsigned slot = 0; slot < traffic.depth; slot++) prepare(slot, &traffic, is_queued);
	uint64_t begin = now_ns(), end = begin + seconds * 1e9, last = begin;
	for (;;) {
		for (uint32_t left = next; left; left &= left - 1) address(__builtin_ctz(left), next_place(&traffic));
		if (next) kick(row, next);
		pending |= next;
		if (!pending) break;
		next = wait_over(row, pending, traffic.size);
		last = now_ns();
		pending &= ~next;
		for (uint32_t left = next; left; left &= left - 1, done++) sample(last - sent_ns[__builtin_ctz(left)]);
		if (last >= end || kicks >= budget) next = 0;
	}
	if ((ram[FRAMES_GPA + STATUS_D2H] | ram[FRAMES_GPA + STATUS_SDB]) & 1) die("%s: a command failed", row);
	report(row, done, done * traffic.size, last - begin);
}

int main(int argc, char **argv)
{
	if (argc < 6) die("ahci-load OUT SECONDS DISK_BYTES KICKS ROW...");
	begin_load(argv[1], argv[2]);
	uint64_t disk_bytes = strtoull(argv[3], NULL, 0);
	unsigned budget = atoi(argv[4]) / (argc - 5);
	list = (void *)(ram + LIST_GPA);
	went_on = (void *)(ram + WENT_ON_GPA);
	issue = (void *)(ram + ISSUE_GPA);
	open_script(atoi(argv[4]));
	for (char **row = argv + 5; *row; row++) {
		/* Most of it before it counts: the first thousands of commands of a life meet code that is not compiled yet, or not well. */
		out = fopen("/dev/null", "w");
		run_row(*row, disk_bytes, row_seconds, budget - budget / 3);
		fclose(out);
		out = results;
		run_row(*row, disk_bytes, row_seconds, budget / 3);
	}
	fclose(results);
	results = NULL;
	release_script();
	return 0;
}
