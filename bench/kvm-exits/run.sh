#!/bin/bash
# bench/kvm-exits/run.sh: the time of one port access under acrn-dm --hypervisor kvm, with one vCPU and with two, and in the
# least of a VMM in C, in one thread and handed over to a second, all in this one run. Needs /dev/kvm and gcc with 32 bits; in the
# rig: RIG_SMP=2 RIG_PASS="DM ROUNDS REPEAT" ../shared/tools/hsmrig/run.sh bench/kvm-exits/run.sh. acrn-dm is warmed up for
# WARM_S seconds first (guest.c says why). All is done REPEAT times (3), and the median of each ratio ends it: with status 1
# where one is above its limit, 150 % with one vCPU and 450 % with two.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
DM=${DM:-node $here/../../dist/acrn-dm.js}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# guest FILE WARM_TICKS; a tick is half a nanosecond or less.
guest() {
  gcc -m32 -march=i686 -Os -ffreestanding -fno-pic -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables \
    -fcf-protection=none -mgeneral-regs-only ${ROUNDS:+-DROUNDS=${ROUNDS}u} -DWARM_TICKS="${2}ull" -nostdlib -static -no-pie \
    -Wl,--build-id=none,-Ttext-segment=0x100000,-z,max-page-size=4096,-z,noseparate-code,-z,noexecstack,--no-warn-rwx-segments \
    -o "$work/$1" "$here/guest.c"
}
guest guest 0
guest warm $((${WARM_S:-15} * 2000000000))
gcc -O2 -pthread -o "$work/vmm" "$here/vmm.c"

# of NAME FILE: ticks of one access.
of() { local line; line=$(tr -d '\r' < "$2" | grep -a "^$1 "); set -- $line; echo $((16#$2 / 16#$3)); }

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

for round in $(seq "${REPEAT:-3}"); do
  "$work/vmm" "$work/guest" > "$work/c"
  "$work/vmm" -t "$work/guest" > "$work/hop"
  # shellcheck disable=SC2086
  $DM --hypervisor kvm -m 128M --cpu_affinity 0 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -E "$work/warm" vm1 > "$work/one" 2> "$work/err" || cat "$work/err"
  # shellcheck disable=SC2086
  $DM --hypervisor kvm -m 128M --cpu_affinity 0,1 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -E "$work/warm" vm1 > "$work/two" 2> "$work/err" || cat "$work/err"
  for name in in out; do
    c=$(of $name "$work/c") hop=$(of $name "$work/hop") one=$(of $name "$work/one") two=$(of $name "$work/two")
    echo "round $round, $name: C $c ticks, with two threads $hop ($((100 * hop / c)) %); acrn-dm with one vCPU $one ($((100 * one / c)) %), with two $two ($((100 * two / c)) %)"
    echo $((100 * one / c)) >> "$work/$name-one"
    echo $((100 * two / c)) >> "$work/$name-two"
  done
done
status=0
for name in in out; do
  one=$(median $(cat "$work/$name-one")) two=$(median $(cat "$work/$name-two"))
  echo "median, $name: $one % with one vCPU, $two % with two"
  [ "$one" -le 150 ] && [ "$two" -le 450 ] || status=1
done
exit $status
