#!/bin/bash
# Linux suspends to RAM: woken by acrnctl's message and by its own RTC alarm; then SIGTERM, which its kernel hears as a
# press of the power button. HYPERVISOR=kvm: on the rig's KVM, of which there is no log of calls.
export RIG_TIMEOUT=${RIG_TIMEOUT:-280}
. "$(dirname "$0")/lib.sh"

here=$(dirname "$(readlink -f "$0")")
type_at_console

state() { node "$here/manager.mjs" vm1 query; }

# asleep COUNT: until the VM was paused so often, and is suspended.
asleep() {
  local end=$((SECONDS + 60))
  while [ $SECONDS -lt $end ]; do
    if [ "$HYPERVISOR" = acrn ]; then [ "$(grep -c PAUSE_VM /proc/fake_acrn_log)" -ge "$1" ] && return
    else [ "$(state)" = 4 ] && return
    fi
    sleep 0.2
  done
  return 1
}

guest_script
# The driver of the power button, for the guest.
version=$(cat "$HSMRIG_BUILD/ready")
mkdir -p /run/button/lib
cp "$HSMRIG_BUILD/image/lib/modules/$version/kernel/drivers/acpi/button.ko" /run/button/lib/
(cd /run/button && find lib | cpio -o -H newc --quiet | gzip -1) >> /run/initrd

WORDS="stay no_console_suspend" start_dm
check "the guest is there" wait_for 150 GUEST-DONE
check "it can suspend to RAM" guest 'grep -q deep /sys/power/mem_sleep && echo deep > /sys/power/mem_sleep'

echo "-- woken by a message of acrnctl"
echo 'echo mem > /sys/power/state; echo "woken-$?"' >&8
check "the VM is paused" asleep 1
check "its state is: suspended" test "$(state)" = 4
# The JavaScript engine tidies up for some seconds, on a busy machine for more; then nothing may wake the device model but its
# own slow look.
sleep 15
for _ in 1 2 3 4 5 6; do
  before=$(ticks)
  sleep 5
  used=$(($(ticks) - before))
  [ $used -gt 5 ] || break
done
echo "        a suspended guest costs $used/100 s of CPU time in 5 s"
check "a suspended guest costs next to nothing" test $used -le 5
check "resume is taken" test "$(node "$here/manager.mjs" vm1 resume)" = 0
check "the guest goes on where it was" wait_for 60 woken-0
check "its state is: running" test "$(state)" = 0

echo "-- woken by its RTC"
check "the alarm is set" guest 'echo 0 > /sys/class/rtc/rtc0/wakealarm; echo +10 > /sys/class/rtc/rtc0/wakealarm'
echo 'echo mem > /sys/power/state; echo "alarmed-$?"' >&8
check "the VM is paused" asleep 2
check "the guest goes on where it was" wait_for 60 alarmed-0
[ "$HYPERVISOR" != acrn ] || check "the VM was reset and started for each" test \
  "$(grep -oE '(START|PAUSE|RESET)_VM' /proc/fake_acrn_log | tr '\n' ' ')" = \
  "START_VM PAUSE_VM RESET_VM START_VM PAUSE_VM RESET_VM START_VM "

echo "-- SIGTERM"
check "the power button has a driver" guest 'insmod /lib/button.ko && sleep 1 && grep -q "Power Button" /sys/class/input/event*/device/name'
# It is open before the button is pressed. What is typed is echoed: in two pieces there.
check "it is listened to" guest 'f=$(grep -l "Power Button" /sys/class/input/event*/device/name); exec 3< /dev/input/$(echo $f | cut -d/ -f5) && { (head -c 24 <&3 > /dev/null; echo button-""pressed; poweroff -f) & }'
kill -TERM "$dm"
check "the guest hears of it" wait_for 60 button-pressed
wait_dm 60
check "status 0" test $? = 0
check "ACPI S5" grep -q 'poweroff: guest entered ACPI S5' "$guest_log"
[ "$failures" = 0 ] || tail -40 "$guest_log"
finish
