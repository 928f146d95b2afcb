#!/bin/bash
# What --hypervisor auto and kvm do where KVM is there, where the user may not open it, where another hypervisor has the CPU, and
# where its node has no driver: which of them runs the guest, the one line, the hint, the status.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
if is_outside; then
  need_rig
  export RIG_TIMEOUT=${RIG_TIMEOUT:-280} RIG_APPEND=fake_acrn_absent
  enter_rig
  exit
fi

failures=0
log=/run/log
node=/dev/kvm
# Outside of the rig it can be read.
trap 'cp /run/log* "$OUT" 2> /dev/null' EXIT
check() {
  local what=$1
  shift
  if "$@"; then echo "ok      $what"; else
    echo "FAILED  $what: $*"
    tail -8 $log
    failures=$((failures + 1))
  fi
}
says() { grep -q -- "$1" $log; }
# run HYPERVISOR [COMMAND...]: a guest that powers off at once; its status is in $status.
run() {
  local hypervisor=$1
  shift
  "$@" ${DM} --hypervisor "$hypervisor" -m 128M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio \
    -k "$repo/examples/guest/demo.bzimage" -B demo=idle,0 choice < /dev/null > $log 2>&1
  status=$?
}
# as UID COMMAND...
as() {
  mkdir -p "/run/$1" && chown "$1:$1" "/run/$1"
  setpriv --reuid="$1" --regid="$1" --clear-groups env HOME=/tmp ACRN_RUN_DIR="/run/$1" "${@:2}"
}
refused() {
  check "status $1" test "$status" = "$1"
  check "one line and a hint" test "$(grep -c . $log)" = 2
}
mkdir -p /run/acrn
# One that has a name everywhere stands for group kvm.
chmod 660 $node
chgrp disk $node

echo "-- KVM is there"
run auto
check "auto takes it" says 'using the embedded hypervisor on /dev/kvm'
check "and runs the guest" says 'guest entered ACPI S5'
check "status 0" test $status = 0

echo "-- the user may not open it"
run kvm as 65534
refused 77
check "group and command are said" says 'group disk may open it: "sudo usermod -aG disk nobody"'
run kvm as 12345
refused 77
check "group and word for a container are said to who has no name" says '"--group-add 6"'
run auto as 12345
check "auto says so, too" says 'this user may not open /dev/kvm (group 6 may open it'
check "and goes on with the software CPU" says 'guest entered ACPI S5'
check "status 0" test $status = 0

echo "-- another hypervisor has the CPU"
modprobe -d "$HSMRIG_BUILD/image" msr
# EFER.SVME, which KVM takes for the sign of one.
efer() { python3 -c 'import os, struct, sys
fd = os.open("/dev/cpu/0/msr", os.O_RDWR)
value = struct.unpack("<Q", os.pread(fd, 8, 0xc0000080))[0]
os.pwrite(fd, struct.pack("<Q", value | 0x1000 if sys.argv[1] == "1" else value & ~0x1000), 0xc0000080)' "$1"; }
if efer 1; then
  run kvm
  # The VM was asked for by then.
  refused 1
  check "the other one is the reason" says 'another hypervisor'
  efer 0
else
  echo "skipped: MSRs cannot be written here"
fi

echo "-- a node without a driver"
rmmod kvm_amd && rmmod kvm
[ -e $node ] || mknod $node c 10 232
run kvm
refused 69
run auto
check "auto goes on with the software CPU" says 'no ACRN or KVM on this machine: using the embedded software hypervisor'
check "and runs the guest" says 'guest entered ACPI S5'
check "status 0" test $status = 0
echo "kvm-choice.sh: $failures failed"
[ "$failures" = 0 ]
