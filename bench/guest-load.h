/*
 * What the guests' drivers have in common that are played from outside on a device model under the recorder
 * (virtio-load.c, ahci-load.c; recorded-load.mjs starts them): the guest's RAM, kicks that the recorder's script carries
 * out, and figures. Started by the recorder: its parent. One line of JSON a row goes to the file of results.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Where the script puts the mark, and where data goes, guest-physical. */
#define MARK_GPA 0x3ff0000ull
#define DATA_GPA 0x5000000ull
static const char mark[] = "guest-load: guest RAM begins 0x3ff0000 below";

static uint8_t *ram;
static pid_t recorder, target;
static FILE *out, *results; /* rows go to out, which is nothing while warming up */
static double row_seconds;

static void release_script(void);
static void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fprintf(stderr, "guest-load: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	if (results) {
		va_start(args, format);
		fprintf(results, "{\"error\":\"");
		vfprintf(results, format, args);
		fprintf(results, "\"}\n");
		va_end(args);
		fclose(results);
	}
	release_script();
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* The recorder's other child is the device model. */
static void find_target(void)
{
	char path[64], line[256];
	recorder = getppid();
	snprintf(path, sizeof path, "/proc/%d/task/%d/children", recorder, recorder);
	FILE *f = fopen(path, "r");
	if (!f || !fgets(line, sizeof line, f)) die("no children of %d", recorder);
	fclose(f);
	for (char *p = strtok(line, " "); p; p = strtok(NULL, " ")) if (atoi(p) != getpid()) { target = atoi(p); return; }
	die("no device model");
}

/* The mapping that has the mark at its place is guest RAM from address 0. */
static void map_ram(void)
{
	char path[96], line[512], found[sizeof mark];
	snprintf(path, sizeof path, "/proc/%d/maps", target);
	FILE *f = fopen(path, "r");
	if (!f) die("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, f)) {
		unsigned long from, to, offset;
		if (sscanf(line, "%lx-%lx rw-s %lx", &from, &to, &offset) != 3 || to - from < DATA_GPA) continue;
		struct iovec here = { found, sizeof found }, there = { (void *)(from + MARK_GPA), sizeof found };
		if (process_vm_readv(target, &here, 1, &there, 1, 0) != sizeof found || memcmp(found, mark, sizeof mark - 1)) continue;
		snprintf(path, sizeof path, "/proc/%d/map_files/%lx-%lx", target, from, to);
		int fd = open(path, O_RDWR);
		if (fd < 0) die("%s: %s", path, strerror(errno));
		ram = mmap(NULL, to - from, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
		if (ram == MAP_FAILED) die("mmap of guest RAM: %s", strerror(errno));
		fclose(f);
		return;
	}
	die("guest RAM not found");
}

/* Kicks that the script carries out: it waits for these words on the device model's standard output. */
static int script_fd = -1;
static unsigned script_kicks, script_kicks_left;
static void open_script(unsigned budget)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/fd/1", target);
	script_fd = open(path, O_WRONLY);
	if (script_fd < 0) die("%s: %s", path, strerror(errno));
	script_kicks_left = budget;
}
static void script_kick(void)
{
	char word[32];
	if (script_kicks_left == 0) return;
	script_kicks_left--;
	int n = snprintf(word, sizeof word, "#%u;", script_kicks++);
	if (write(script_fd, word, n) != n) script_kicks_left = 0;
}

/* The script goes on when every kick it waits for has come. */
static void release_script(void)
{
	while (script_kicks_left > 0) script_kick();
}

static uint64_t kicks; /* of a row */

/* Look for a while, then let others have the CPU: there may be no more of them than of us. */
static void relax(unsigned *turns)
{
	if (++*turns % 64 == 0) sched_yield();
	else __builtin_ia32_pause();
}

/* Figures of a row. */
#define MAX_SAMPLES (8u << 20)
static uint32_t *samples;
static unsigned sample_count;
static void sample(uint64_t ns) { if (sample_count < MAX_SAMPLES) samples[sample_count++] = ns > UINT32_MAX ? UINT32_MAX : ns; }
static int compare(const void *a, const void *b) { uint32_t x = *(uint32_t *)a, y = *(uint32_t *)b; return (x > y) - (x < y); }
static void report(const char *row, uint64_t count, uint64_t bytes, uint64_t ns)
{
	if (ns == 0) ns = 1;
	qsort(samples, sample_count, sizeof *samples, compare);
	fprintf(out, "{\"row\":\"%s\",\"count\":%lu,\"perSecond\":%.1f,\"mibPerSecond\":%.2f,\"kicks\":%lu", row, count, count * 1e9 / ns,
		bytes * 1e9 / ns / 1048576, kicks);
	if (sample_count)
		fprintf(out, ",\"p50Us\":%.2f,\"p99Us\":%.2f", samples[sample_count / 2] / 1e3, samples[sample_count * 99ull / 100] / 1e3);
	fprintf(out, "}\n");
	fflush(out);
}

/* Before anything else. */
static void begin_load(const char *results_path, const char *seconds)
{
	out = results = fopen(results_path, "w");
	if (!results) die("%s: %s", results_path, strerror(errno));
	row_seconds = atof(seconds);
	samples = malloc(MAX_SAMPLES * sizeof *samples);
	find_target();
	map_ram();
}

/* A disk's row: {r,w}{r,s}SIZE@DEPTH, e.g. rr4096@1 = random read. */
#define MAX_DEPTH 64
struct traffic { bool is_write, is_random; unsigned size, depth; uint64_t places, next, seed; };
static struct traffic traffic_of(const char *row, uint64_t disk_bytes)
{
	struct traffic t = { .is_write = row[0] == 'w', .is_random = row[1] == 'r', .seed = 88172645463325252ull };
	if (sscanf(row + 2, "%u@%u", &t.size, &t.depth) != 2 || t.size == 0 || t.depth > MAX_DEPTH) die("row %s", row);
	t.places = disk_bytes / t.size;
	return t;
}

/* Byte offset of its next request. */
static uint64_t next_place(struct traffic *t)
{
	if (!t->is_random) return t->next++ % t->places * t->size;
	t->seed ^= t->seed << 13;
	t->seed ^= t->seed >> 7;
	t->seed ^= t->seed << 17;
	return t->seed % t->places * t->size;
}
