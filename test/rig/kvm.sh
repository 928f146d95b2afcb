#!/bin/bash
# Debian amd64 on the embedded hypervisor with the machine's own KVM: several vCPUs (CPUS=0,1,2,3: four), a disk used by
# all of them, the hypervisor's ivshmem, pauses, S3, a reboot, and the power button. HYPERVISOR=kvm test/rig/virtio.sh has the devices.
# STEPS="cpus s3" runs some of the steps; the guest powers itself off then.
export HYPERVISOR=kvm CPUS=${CPUS:-0,1} STEPS=${STEPS:-cpus ivshmem pause s3 reboot button} RIG_PASS="CPUS STEPS"
export RIG_TIMEOUT=${RIG_TIMEOUT:-290}
. "$(dirname "$0")/lib.sh"

wanted() { [[ " $STEPS " == *" $1 "* ]]; }
count=$(echo "$CPUS" | tr ',' '\n' | wc -l)
type_at_console
guest_script
# The driver of the power button, for the guest.
version=$(cat "$HSMRIG_BUILD/ready")
mkdir -p /run/button/lib
cp "$HSMRIG_BUILD/image/lib/modules/$version/kernel/drivers/acpi/button.ko" /run/button/lib/
# ivshmem.sh CPUS [VALUE]: all CPUs at once ask the device which VM this is; the shared memory is given this value, and has it.
cat > /run/button/lib/ivshmem.sh << 'END'
resources=/sys/bus/pci/devices/0000:00:05.0/resource
registers=$(sed -n 1p $resources | cut -d' ' -f1) memory=$(sed -n 3p $resources | cut -d' ' -f1)
rm -f /tmp/at.*
for cpu in $(seq 0 $(($1 - 1))); do
  taskset $((1 << cpu)) sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do devmem $((registers + 8)) 32; done" > /tmp/at.$cpu &
done
wait
[ "$(cat /tmp/at.* | wc -l)" = $((10 * $1)) ] && [ "$(sort -u /tmp/at.*)" = 0x00000001 ] || exit 1
[ -z "${2:-}" ] || devmem $((memory + 16)) 32 "$2"
[ "$(devmem $((memory + 16)) 32)" = 0x1234ABCD ]
END
(cd /run/button && find lib | cpio -o -H newc --quiet | gzip -1) >> /run/initrd
truncate -s 32M /run/disk.img

WORDS="stay no_console_suspend" start_dm -s "3,virtio-blk,/run/disk.img,writeback" -s 5,ivshmem,hv:/kvm,2
check "the guest is there" wait_for 200 GUEST-DONE
sleep 1
echo "        its shell after $SECONDS s, $(grep -ao 'GUEST-UP.*' "$guest_log" | head -1 | tr -d '\r')"
check "with $count vCPUs" guest "test \$(grep -c ^processor /proc/cpuinfo) = $count"

if wanted cpus && [ "$count" -gt 1 ]; then
  check "a thread for each of them" test "$(cat /proc/"$dm"/task/*/comm | grep -c '^vcpu')" = "$count"
  check "each of them writes and reads the disk" guest "insmod /lib/virtio_blk.ko 2> /dev/null; ls /sys/block/vda > /dev/null && \
for c in \$(seq 0 $((count - 1))); do taskset -p \$((1 << c)) \$\$ > /dev/null; \
dd if=/dev/urandom of=/tmp/d bs=1M count=1 2> /dev/null; dd if=/tmp/d of=/dev/vda seek=\$c bs=1M oflag=direct 2> /dev/null; \
dd if=/dev/vda of=/tmp/e skip=\$c bs=1M count=1 iflag=direct 2> /dev/null; cmp /tmp/d /tmp/e || bad=1; done; test -z \"\$bad\"" 60
fi

if wanted ivshmem; then check "all of them at the registers of ivshmem, and its memory" guest "sh /lib/ivshmem.sh $count 0x1234ABCD"; fi
if wanted pause; then
  echo "-- pause"
  # acrnvm of the same build.
  of_vm() { node "$(dirname "${DM##* }")/acrnvm.js" "$@" vm1; }
  seconds() { grep -ac '^tick' "$guest_log"; }
  guest '(while :; do echo "ti""ck"; sleep 1; done) & echo $! > /tmp/ticker' || true
  check "the guest counts seconds" wait_for 30 '^tick'
  check "it is paused" of_vm pause
  sleep 1
  before=$(seconds)
  sleep 5
  check "and counts none meanwhile ($before)" test "$(seconds)" = "$before"
  check "it goes on" of_vm resume
  sleep 5
  check "and counts on ($before, then $(seconds))" test "$(seconds)" -gt "$before"
  check "with all of its CPUs" guest "kill \$(cat /tmp/ticker); bad=; for c in \$(seq 0 $((count - 1))); do taskset -p \$((1 << c)) \$\$ > /dev/null || bad=1; done; test -z \"\$bad\""
fi

if wanted s3; then
  echo "-- S3, woken by its RTC"
  # On a busy machine the alarm may come before the guest sleeps, which keeps it from that: once more, with a later one.
  guest 'echo deep > /sys/power/mem_sleep' || true
  echo 'for s in 10 60; do echo 0 > /sys/class/rtc/rtc0/wakealarm; echo +$s > /sys/class/rtc/rtc0/wakealarm; echo mem > /sys/power/state && break; done; echo "alarmed-$?"' >&8
  check "the guest goes on where it was" wait_for 150 alarmed-0
  check "with $count vCPUs" guest "test \$(cat /sys/devices/system/cpu/online) = 0$([ "$count" = 1 ] || echo "-$((count - 1))")"
  if wanted ivshmem; then check "ivshmem has what it had" guest "sh /lib/ivshmem.sh $count"; fi
fi

if wanted reboot; then
  echo "-- reboot"
  echo 'reboot -f' >&8
  check "the guest comes up again" life 2 150
  sleep 1
  check "with $count vCPUs" guest "test \$(grep -c ^processor /proc/cpuinfo) = $count"
  if wanted ivshmem; then check "ivshmem has what it had" guest "sh /lib/ivshmem.sh $count"; fi
fi

if wanted button; then
  echo "-- SIGTERM"
  check "the power button has a driver" guest 'insmod /lib/button.ko && sleep 1 && grep -q "Power Button" /sys/class/input/event*/device/name'
  # It is open before the button is pressed. What is typed is echoed: in two pieces there.
  check "it is listened to" guest 'f=$(grep -l "Power Button" /sys/class/input/event*/device/name); exec 3< /dev/input/$(echo $f | cut -d/ -f5) && { (head -c 24 <&3 > /dev/null; echo button-""pressed; poweroff -f) & }'
  kill -TERM "$dm"
  check "the guest hears of it" wait_for 60 button-pressed
else
  echo 'poweroff -f' >&8
fi
wait_dm 60
check "status 0" test $? = 0
check "ACPI S5" grep -q 'poweroff: guest entered ACPI S5' "$guest_log"
echo "        over after $SECONDS s"
[ "$failures" = 0 ] || tail -60 "$guest_log"
finish
