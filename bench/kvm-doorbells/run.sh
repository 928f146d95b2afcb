#!/bin/bash
# bench/kvm-doorbells/run.sh: a doorbell from VM to VM and back (half of it is the way of one), two VMs of acrn-dm --hypervisor kvm
# with an ivshmem region in two processes, and beside them a bare ioeventfd that is the other VM's irqfd, in the least of a VMM in C,
# in turns. Needs /dev/kvm and gcc with 32 bits; in the rig: RIG_PASS=DM RIG_SMP=2 ../shared/tools/hsmrig/run.sh
#   MAX_RATIO=2   status 1 when the median of the rounds' p50 is above it
set -eu
here=$(cd "$(dirname "$0")" && pwd)
DM=${DM:-node $here/../../dist/acrn-dm.js}
work=$(mktemp -d)
# shellcheck disable=SC2046
trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$work"' EXIT
build() {
  gcc -m32 -march=i686 -Os -ffreestanding -fno-pic -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables \
    -fcf-protection=none -mgeneral-regs-only "-DROLE=$1" ${ROUNDS:+-DROUNDS=${ROUNDS}u} -nostdlib -static -no-pie \
    -Wl,--build-id=none,-Ttext-segment=0x100000,-z,max-page-size=4096,-z,noseparate-code,-z,noexecstack,--no-warn-rwx-segments \
    -o "$work/$1" "$here/guest.c"
}
build PING
build PONG
gcc -O2 -pthread -o "$work/vmm" "$here/../kvm-exits/vmm.c"

# vm IMAGE
vm() {
  # shellcheck disable=SC2086
  $DM --hypervisor kvm -m 128M --cpu_affinity 0 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s "5,ivshmem,hv:/hop-$$,2" \
    -E "$work/$1" "$1-$$" < /dev/null > "$work/$1.log" 2>&1
}
# of NAME FILE: ticks.
of() { echo $((16#$(tr -d '\r' < "$2" | sed -n "s/^$1 //p" | grep .))); }

ratios=
for round in 1 2 3; do
  "$work/vmm" "$work/PONG" "$work/PING" > "$work/bare"
  vm PONG & pong=$!
  vm PING || cat "$work/PING.log"
  wait $pong || cat "$work/PONG.log"
  bare=$(of p50 "$work/bare") ours=$(of p50 "$work/PING.log")
  echo "round $round: there and back p50 $ours ticks, bare $bare ($((100 * ours / bare)) %); p99 $(of p99 "$work/PING.log"), bare $(of p99 "$work/bare")"
  ratios="$ratios $((100 * ours / bare))"
done
median=$(printf '%s\n' $ratios | sort -n | sed -n 2p)
echo "kvm-doorbells: $median % of the bare way (median of 3)"
[ "$median" -le $((100 * ${MAX_RATIO:-1000})) ]
