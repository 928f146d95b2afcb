/* Time: the RTC tells the date, the PIT is the ruler, the local APIC timer ticks. */
#include "guest.h"

volatile u32 ticks;

/* ---- RTC: MC146818, registers through ports 0x70/0x71 */

enum { RTC_SECONDS = 0, RTC_MINUTES = 2, RTC_HOURS = 4, RTC_DAY = 7, RTC_MONTH = 8, RTC_YEAR = 9, RTC_STATUS_A = 10, RTC_STATUS_B = 11, RTC_CENTURY = 0x32 };

static u8 cmos(u8 index)
{
	outb(0x70, index);
	return inb(0x71);
}

static u32 rtc_field(u8 index)
{
	u8 value = cmos(index);

	return (cmos(RTC_STATUS_B) & 4) != 0 ? value : (value >> 4) * 10u + (value & 15);      /* binary or BCD */
}

void rtc_print(void)
{
	for (u32 patience = 100000; patience != 0 && (cmos(RTC_STATUS_A) & 0x80) != 0; patience--)
		;                       /* an update is in progress: at most 2 ms */
	print("%02u%02u-%02u-%02u %02u:%02u:%02u\n", rtc_field(RTC_CENTURY), rtc_field(RTC_YEAR), rtc_field(RTC_MONTH),
	      rtc_field(RTC_DAY), rtc_field(RTC_HOURS), rtc_field(RTC_MINUTES), rtc_field(RTC_SECONDS));
}

/* ---- local APIC timer, measured against channel 2 of the PIT */

enum { TIMER_LVT = 0xfee00320, TIMER_INITIAL = 0xfee00380, TIMER_CURRENT = 0xfee00390, TIMER_DIVIDE = 0xfee003e0 };
enum { PERIODIC = 1 << 17, MASKED = 1 << 16, DIVIDE_BY_1 = 0x0b };
enum { PIT_CHANNEL2 = 0x42, PIT_CONTROL = 0x43, PIT_GATE = 0x61 };
enum { PIT_HZ = 1193182, MEASURE_MS = 10 };

/* Timer counts in MEASURE_MS, or 0 when the PIT's output never comes. */
static u32 measure(void)
{
	const u32 pit_counts = PIT_HZ / 1000 * MEASURE_MS;
	u32 patience = 2000000;

	write32(TIMER_DIVIDE, DIVIDE_BY_1);
	write32(TIMER_LVT, MASKED | VECTOR_TIMER);
	outb(PIT_GATE, (u8)((inb(PIT_GATE) & ~2) | 1));         /* gate on, speaker off */
	outb(PIT_CONTROL, 0xb0);                                /* channel 2, low then high byte, mode 0 */
	outb(PIT_CHANNEL2, pit_counts & 0xff);
	outb(PIT_CHANNEL2, pit_counts >> 8);
	write32(TIMER_INITIAL, 0xffffffff);
	while ((inb(PIT_GATE) & 0x20) == 0 && --patience != 0)
		;
	u32 counted = 0xffffffff - read32(TIMER_CURRENT);
	write32(TIMER_INITIAL, 0);
	return patience != 0 ? counted : 0;
}

u32 timer_start(void)
{
	u32 counts = measure();

	write32(TIMER_LVT, PERIODIC | VECTOR_TIMER);
	write32(TIMER_INITIAL, counts != 0 ? counts / MEASURE_MS * TICK_MS : 1000 * TICK_MS);
	__asm__ volatile("sti");
	return counts / MEASURE_MS;
}

void idle(void)
{
	__asm__ volatile("hlt");
}

void sleep_ms(u32 ms)
{
	for (u32 start = ticks; ticks - start < ms / TICK_MS;)
		idle();
}
