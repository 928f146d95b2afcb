#!/bin/bash
# Linux on the embedded hypervisor by its serial console: what an idle guest costs, its clock, reboots, power off; what is told of it
# after its watchdog and a triple fault.
# IDLE_S: how long its clock is watched.
MODULES=i6300esb
. "$(dirname "$0")/lib.sh"
IDLE_S=${IDLE_S:-130}

# clock_offset: $offset_us, of the guest's clock to the host's, from the quickest of some answers; $error_us grows by how
# much it may be wrong.
error_us=0
clock_offset() {
  local asked_at answered_at guest_s guest_us best=1000000000
  for _ in 1 2 3 4 5 6 7 8; do
    asked=$((asked + 1))
    asked_at=${EPOCHREALTIME/./}
    # busybox date has no fractions.
    printf 'echo "clock-%s" $(adjtimex | sed -n "s/.*time.tv_u*sec: *//p")\n' $asked >&8
    until guest_us=$(grep -aoE "^clock-$asked [0-9]+ [0-9]+\s" "$guest_log"); do
      kill -0 "$dm" || return
    done
    answered_at=${EPOCHREALTIME/./}
    read -r _ guest_s guest_us <<< "${guest_us%?}"
    guest_us=$((guest_s * 1000000 + 10#$guest_us))
    if [ $((answered_at - asked_at)) -lt $best ]; then
      best=$((answered_at - asked_at))
      offset_us=$((guest_us - (asked_at + answered_at) / 2))
    fi
  done
  error_us=$((error_us + best / 2))
}

type_at_console
guest_script
WORDS=keep start_dm -s 3,wdt-i6300esb --crash-dump "$scratch/crash.json"
check "the first life" life 1
clock_offset
before_us=$offset_us before_s=$SECONDS cpu=$(ticks)
sleep "$IDLE_S"
cpu=$(($(ticks) - cpu))
seconds=$((SECONDS - before_s))
clock_offset
drift_us=$((offset_us - before_us))
echo "        an idle guest costs $((cpu / IDLE_S)) % of a CPU"
echo "        its clock drifts by $drift_us us in $seconds s, give or take $error_us us"
drift_us=$((${drift_us#-} - error_us))
check "drift below 100 ms a minute" test $((drift_us * 60 / seconds)) -lt 100000

for number in 2 3; do
  echo 'reboot -f' >&8
  check "life $number after a reboot" life $number
done
check "the guest resets itself by port 0xcf9" test "$(grep -c 'full-reset: reset register' "$guest_log")" = 2

echo "-- watchdog"
check "the driver has it" guest 'test -c /dev/watchdog'
check "a watchdog of 4 s" guest 'rmmod i6300esb && insmod /lib/i6300esb.ko heartbeat=4'
check "a guest that feeds it lives on" guest 'for i in 1 2 3 4 5 6 7 8 9 10; do echo; sleep 1; done > /dev/watchdog; cat /sys/class/watchdog/watchdog0/state | grep -q active'
fed_s=$SECONDS
check "life 4 after the guest stopped feeding it" life 4
echo "        it was back after $((SECONDS - fed_s)) s"
check "it was the watchdog" grep -aq 'system reset: watchdog timeout' "$guest_log"
check "what is known of the guest that did not feed it" grep -q '"cause": "watchdog"' "$scratch/crash.json"
check "its registers" grep -q 'eip' "$scratch/crash.json"
check "life 4 is alive" guest 'test $(cut -d. -f1 /proc/uptime) -lt 60'

echo 'poweroff -f' >&8
wait_dm 60
check "status 0" test $? = 0
check "ACPI S5" grep -aq 'poweroff: guest entered ACPI S5' "$guest_log"

echo "-- a triple fault, of which the process tells afterwards"
acrnvm() { node "$soft_repo/dist/acrnvm.js" "$@"; }
rm "$scratch/crash.json"
WORDS="keep reboot=t" start_dm --on-crash stay --crash-dump "$scratch/crash.json" --api-socket "$scratch/api"
check "the guest is there" life 1
echo 'reboot -f' >&8
check "it is a crash, and no reboot" wait_for 60 'triple fault'
for ((i = 0; i < 100; i++)); do [ -s "$scratch/crash.json" ] && break; sleep 0.2; done
check "the file has the cause" grep -q '"cause": "triple-fault"' "$scratch/crash.json"
check "the newest output" grep -q 'Restarting system' "$scratch/crash.json"
check "the registers" grep -q 'eip' "$scratch/crash.json"
check "acrnvm crash tells the same" sh -c "node '$soft_repo/dist/acrnvm.js' crash '$scratch/api' | cmp - '$scratch/crash.json'"
acrnvm stop -f "$scratch/api"
wait_dm 30
check "status 0" test $? = 0
[ "$failures" = 0 ] || tail -40 "$guest_log"
finish
