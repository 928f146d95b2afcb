#!/bin/bash
# virtio-heci with a management engine that is a character device of the host's: /dev/mei0 by CUSE, whose calls a program
# answers (test/support/fake-mei.py), with the attributes of sysfs beside it. No Linux has a driver for the guest's side
# but ACRN's own: a program in the guest is one (test/guest/heci.c). Not shown here: a real engine. Two minutes.
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
! is_outside || [ ! -d "$rig" ] || {
  mkdir -p "$rig_build" && gcc -O2 -static -o "$rig_build/heci" "$repo/test/guest/heci.c"
} || exit 125
. "$repo/test/rig/lib.sh"

host_modules cuse mei
[ -e /dev/cuse ] || { echo "no /dev/cuse"; exit 125; }
mkfifo /run/mei.in
python3 "$repo/test/support/fake-mei.py" --cuse < /run/mei.in > /run/mei.log 2>&1 & engine=$!
exec 6> /run/mei.in
for _ in $(seq 100); do [ -c /dev/mei0 ] && break; sleep 0.2; done
check "the engine is a character device" test -c /dev/mei0
# The class is the kernel's, its devices are ours.
mount -t tmpfs none /sys/class/mei
client() {
  mkdir -p "/sys/class/mei/mei0/device/mei::$1"
  (cd "/sys/class/mei/mei0/device/mei::$1" &&
    echo "$2" > uuid && echo 3 > version && echo 1 > vtag && echo 1500 > max_len && echo 1 > max_conn && echo 0 > fixed)
}
client 0 8e6a6715-9abc-4043-88ef-9e39c6f63e0f
client 1 00000000-0000-0000-0000-000000000001
state() { echo "$1" > /sys/class/mei/mei0/dev_state; }
state ENABLED

echo '/heci' > /run/inside
guest_script /run/inside
mkdir -p /run/more && cp "$HSMRIG_BUILD/heci" /run/more/
(cd /run/more && echo heci | cpio -o -H newc --quiet | gzip -1) >> /run/initrd

start_dm -s 8,virtio-heci
if wait_for 200 "STAGE reset"; then
  state RESETTING
  check "the guest sees the reset" wait_for 200 "STAGE back"
  check "every connection is closed" grep -q "release 0" /run/mei.log
  state ENABLED
fi
wait_dm 200
check "the device model ends with 0" test $? = 0
guest_results
check "the engine heard the VM's tag" grep -q "connect 15676a8ebc9a434088ef9e39c6f63e0f [1-9]" /run/mei.log
check "all connections are closed" test "$(grep -c ^connect /run/mei.log)" -ge 3 -a "$(tail -1 /run/mei.log)" = "release 0"
[ $failures = 0 ] || tail -5 /run/mei.log
kill $engine
finish
