#!/bin/bash
# bench/kvm-start/run.sh: how long a Linux takes from the first KVM_RUN to its userspace, under acrn-dm --hypervisor kvm and under
# QEMU with the same KVM, kernel, ramdisk and words, each with a serial port and no disk, in turns; and the whole start. Needs root,
# /dev/kvm and the kernel's trace points; in the rig: RIG_PASS="DM ROUNDS" ../shared/tools/hsmrig/run.sh bench/kvm-start/run.sh
#
#   K=vmlinuz R=initrd.gz   whose init prints GUEST-UP and powers off (default: the rig's)
#   WORDS="..."             more kernel words
#   MAX_RATIO=1.25          status 1 when the median ratio is above it
set -u
here=$(cd "$(dirname "$0")" && pwd)
DM=${DM:-node $here/../../dist/acrn-dm.js}
K=${K:-${HSMRIG_BUILD:?K= names a kernel}/vmlinuz} R=${R:-${HSMRIG_BUILD:-}/guest-initrd.gz}
words="console=ttyS0 panic=-1 quiet no_timer_check nokaslr tsc=reliable pci=lastbus=0,noearly ${TSC_KHZ:+tsc_early_khz=$TSC_KHZ lpj=$((TSC_KHZ * 4))} ${WORDS:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trace=/sys/kernel/tracing
mountpoint -q $trace || mount -t tracefs none $trace || exit 1
mkdir -p /run/acrn
mkfifo "$work/console"
now() { cut -d' ' -f1 /proc/uptime; }

# start NAME COMMAND...: milliseconds in $run (from the first KVM_RUN) and $whole.
start() {
  local name=$1 begin first up
  shift
  echo mono > $trace/trace_clock
  echo > $trace/trace
  echo '!traceoff:1' > $trace/events/kvm/kvm_entry/trigger 2> /dev/null
  echo 'traceoff:1' > $trace/events/kvm/kvm_entry/trigger
  echo 1 > $trace/events/kvm/kvm_entry/enable
  echo 1 > $trace/tracing_on
  begin=$(now)
  timeout -s KILL "${LIMIT_S:-150}" "$@" < /dev/null > "$work/console" 2>&1 &
  { grep -a -m1 -o GUEST-UP && now && cat > /dev/null; } < "$work/console" > "$work/up"
  wait $!
  up=$(sed -n 2p "$work/up")
  first=$(grep -a -m1 kvm_entry $trace/trace | grep -o '[0-9]*\.[0-9]*: kvm_entry' | cut -d: -f1)
  [ -n "$up" ] && [ -n "$first" ] || { echo "$name: no userspace"; return 1; }
  run=$(awk -v a="$first" -v b="$up" 'BEGIN { printf "%d", (b - a) * 1000 }')
  whole=$(awk -v a="$begin" -v b="$up" 'BEGIN { printf "%d", (b - a) * 1000 }')
}

ratios=
for round in $(seq "${ROUNDS:-3}"); do
  start qemu qemu-system-x86_64 -nodefaults -no-reboot -accel kvm -cpu host -m 256 -display none -M pc -serial stdio \
    -kernel "$K" -initrd "$R" -append "$words" || exit 1
  qemu=$run qemu_whole=$whole
  # shellcheck disable=SC2086
  start acrn-dm $DM --hypervisor kvm -m 256M -k "$K" -r "$R" -B "$words" --cpu_affinity 0 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio vm1 || exit 1
  echo "round $round: from the first KVM_RUN to userspace QEMU $qemu ms, acrn-dm $run ms ($((100 * run / qemu)) %); from exec $qemu_whole and $whole ms"
  ratios="$ratios $((100 * run / qemu))"
done
median=$(printf '%s\n' $ratios | sort -n | sed -n "$(((${ROUNDS:-3} + 1) / 2))p")
echo "kvm-start: $median % of QEMU's time (median of ${ROUNDS:-3})"
awk -v m="$median" -v most="${MAX_RATIO:-1000}" 'BEGIN { exit m > 100 * most }'
