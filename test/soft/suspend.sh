#!/bin/bash
# Linux on the embedded hypervisor suspends to RAM: woken by its RTC at the second it asked for, twice, with disk, console
# and clock in order afterwards; then SIGTERM, which its kernel hears as a press of the power button.
MODULES="button evdev virtio_pci virtio_blk virtio_rng"
. "$(dirname "$0")/lib.sh"

# suspend TIME SECONDS: the guest sleeps for the so-manieth time, until it is back; $late_ms after the alarm it set.
suspend() {
  local number=$1 seconds=$2 alarm
  guest "echo 0 > /sys/class/rtc/rtc0/wakealarm && echo +$seconds > /sys/class/rtc/rtc0/wakealarm && echo alarm-$number-\$(cat /sys/class/rtc/rtc0/wakealarm)" || return
  alarm=$(grep -aoE "^alarm-$number-[0-9]+" "$guest_log")
  alarm=${alarm##*-}
  echo "echo mem > /sys/power/state; echo \"woken-$number-\$?\"" >&8
  for ((i = 0; i < 600; i++)); do
    grep -aq "^woken-$number-0" "$guest_log" && break
    sleep 0.1
  done
  grep -aq "^woken-$number-0" "$guest_log" || return
  late_ms=$((${EPOCHREALTIME/./} / 1000 - alarm * 1000))
}

guest_script
head -c 8M /dev/urandom > "$scratch/disk.img"
sum=$(md5sum < "$scratch/disk.img")
type_at_console
WORDS="keep no_console_suspend" start_dm -s "3,virtio-blk,$scratch/disk.img" -s 4,virtio-rnd
check "the guest is there" life 1
check "it can suspend to RAM" guest 'grep -q deep /sys/power/mem_sleep && echo deep > /sys/power/mem_sleep'

for number in 1 2; do
  check "suspended and woken, time $number" suspend $number 12
  echo "        back at the shell ${late_ms:-?} ms after the second of the alarm"
  check "not before the alarm, and soon after it" test "${late_ms:--1}" -ge 0 -a "${late_ms:-99999}" -lt $((5000 * ${SLOW:-1}))
  check "the time of day is right" guest "d=\$((\$(date +%s) - $(date +%s))); test \${d#-} -le 2"
  check "the RTC is right" guest "d=\$((\$(cat /sys/class/rtc/rtc0/since_epoch) - $(date +%s))); test \${d#-} -le 2"
  check "timers run" guest 'sleep 1'
  check "the disk is read" guest "echo 3 > /proc/sys/vm/drop_caches; test \"\$(md5sum < /dev/vda)\" = '$sum'"
  check "random numbers come" guest 'test $(head -c 64 /dev/hwrng | wc -c) = 64'
done
check "it was S3" guest 'test "$(dmesg | grep -c "Waking up from system sleep state S3")" = 2'

echo "-- SIGTERM"
check "the power button has a driver" guest 'button=$(dirname "$(grep -l "Power Button" /sys/class/input/input*/name | head -1)") && button=$(basename "$button"/event*) && test -c /dev/input/$button'
echo '(head -c 16 /dev/input/$button > /dev/null; echo button-pressed; poweroff -f) &' >&8
sleep 2
kill -TERM "$dm"
check "the guest hears of it" wait_for 60 '^button-pressed'
wait_dm 60
check "status 0" test $? = 0
check "ACPI S5" grep -aq 'poweroff: guest entered ACPI S5' "$guest_log"
[ "$failures" = 0 ] || tail -60 "$guest_log"
finish
