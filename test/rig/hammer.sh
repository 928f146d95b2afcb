#!/bin/bash
# A guest that accesses every port of the platform at random, a million times (or $COUNT): the device model serves all of
# it, says little, and goes on working.
export COUNT=${COUNT:-1000000} SEED=${SEED:-1} RIG_PASS="COUNT SEED" RIG_TIMEOUT=${RIG_TIMEOUT:-900}
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
! is_outside || gcc -O2 -static -o "$rig_build/hammer" "$repo/test/rig/hammer.c" || exit 125
. "$repo/test/rig/lib.sh"

echo 300 > /proc/sys/vm/nr_hugepages
mkdir -p /run/acrn /var/log
truncate -s 16M /run/disk.img
$DM -m 128M -k "$HSMRIG_BUILD/vmlinuz" --cpu_affinity 0 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -l com2 \
  -s 3,virtio-blk,/run/disk.img -s 4,virtio-rnd -s 5,ivshmem,dm:/rig,2 -s 6,wdt-i6300esb vm1 < /dev/null > "$guest_log" 2>&1 &
dm=$!
wait_for 60 START_VM /proc/fake_acrn_log

check "every access is answered" "$HSMRIG_BUILD/hammer" "$COUNT" "$SEED"
sed 's/^/        /' /run/check.log
check "the device model runs" kill -0 "$dm"
lines=$(grep -ac '^acrn-dm' "$guest_log")
echo "        $lines lines of log"
check "the log is not flooded" test "$lines" -lt 300
check "nothing reset the VM" test "$(grep -c CREATE_VM /proc/fake_acrn_log)" = 1
kill -INT "$dm"
wait_dm 60
check "status 0" test $? = 0
[ "$failures" = 0 ] || grep -a '^acrn-dm' "$guest_log" | tail -30
finish
