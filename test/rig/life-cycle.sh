#!/bin/bash
# Linux with two CPUs, used by its serial console: what is typed arrives, an idle guest costs nothing, memory is shared
# with the host, and the guest reboots itself twice and then powers off.
export RIG_SMP=${RIG_SMP:-2} RIG_TIMEOUT=${RIG_TIMEOUT:-280}
. "$(dirname "$0")/lib.sh"

type_at_console

bar='$(sed -n "3s/ .*//p" /sys/bus/pci/devices/0000:00:05.0/resource)'

guest_script
WORDS=stay start_dm --cpu_affinity 0,1 -s 5,ivshmem,dm:/rig,2
check "the first life" life 1
check "two CPUs" guest 'test $(nproc) = 2'
check "a long line arrives whole" guest "test $(printf '%0300d' 7) = $(printf '%0300d' 7)"

# The JavaScript engine tidies up for some seconds after the guest's boot; then nothing may wake the device model.
sleep 15
before=$(ticks)
sleep 10
used=$(($(ticks) - before))
echo "        an idle guest costs $used/100 s of CPU time in 10 s"
check "an idle guest costs next to nothing" test $used -le 5

check "the shared memory is there" guest "echo 1 > /sys/bus/pci/devices/0000:00:05.0/enable && devmem $bar 32 0x600df00d"
check "the host sees what the guest wrote" test "$(od -An -tx4 -N4 /dev/shm/rig)" = " 600df00d"
printf '\x0b\xb0\xad\xde' | dd of=/dev/shm/rig bs=1 seek=4 conv=notrunc 2> /dev/null
check "the guest sees what the host wrote" guest "test \$(devmem \$(($bar + 4))) = 0xDEADB00B"

for number in 2 3; do
  echo 'reboot -f' >&8
  check "life $number after a reboot" life $number
  check "two CPUs again" guest 'test $(nproc) = 2'
done
check "the shared memory is kept" guest "echo 1 > /sys/bus/pci/devices/0000:00:05.0/enable && test \$(devmem $bar) = 0x600DF00D"
check "each life is a VM of its own" test "$(grep -c CREATE_VM /proc/fake_acrn_log)" = 3
check "the guest resets itself by port 0xcf9" test "$(grep -c 'full-reset: reset register' "$guest_log")" = 2
echo 'poweroff -f' >&8
wait_dm 60
check "status 0" test $? = 0
check "ACPI S5" grep -q 'poweroff: guest entered ACPI S5' "$guest_log"
[ "$failures" = 0 ] || tail -40 "$guest_log"
finish
