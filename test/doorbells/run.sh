#!/bin/bash
# test/doorbells/run.sh: doorbells and memory between User VMs in processes of their own, on the embedded hypervisor. Two
# pass blocks of shared memory back and forth, while a third joins and leaves and a fourth floods both until it is killed.
#
#   ENGINE=soft|kvm   which one (soft)
#   BLOCKS=5000       at least: two doorbells a block
#   BLOCK_BYTES=4096
#   VISITS=5          how often the third joins and leaves
#   LIMIT_S=240       a doorbell that is lost stops both: that long
#   CPUS=0,1          vCPUs of each VM, by --cpu_affinity: one if not given
#   DM="node DIR/acrn-dm.js"
#   GROUP=4777        each VM is another user's (4242 to 4245), and they meet by --socket-group; as root
# The whole: BLOCKS=500000 BLOCK_BYTES=2148 VISITS=100 LIMIT_S=7200 (1,000,000 doorbells, 1 GB). Status: 0 passed, 1 failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
ENGINE=${ENGINE:-soft} BLOCKS=${BLOCKS:-5000} BLOCK_BYTES=${BLOCK_BYTES:-4096} VISITS=${VISITS:-5} LIMIT_S=${LIMIT_S:-240}
DM=${DM:-node $here/../../dist/acrn-dm.js}
if [ "$ENGINE" = soft ] && [ ! -d "$here/../../node_modules/v86" ] && [ -z "${GUESTS:-}" ]; then
  echo "skipped: the optional package v86 is not installed"; exit 0
fi
region=bells-$$
work=${KEEP:-$(mktemp -d)}
meeting=$(mktemp -d) place=$meeting/group-${GROUP:-}
failures=0
fail() { echo "FAILED  $*"; failures=$((failures + 1)); }
# shellcheck disable=SC2046
trap 'kill -9 $(jobs -p) 2> /dev/null; rm -rf "$meeting"; [ -n "${KEEP:-}" ] || rm -rf "$work"' EXIT

# Sockets and memory of a group are in one folder, as root makes it.
if [ -n "${GROUP:-}" ]; then
  [ "$(id -u)" = 0 ] && command -v setpriv > /dev/null || { echo "skipped: users of their own take root and setpriv"; exit 0; }
  chmod 755 "$meeting"; install -d -m 3770 -g "$GROUP" "$place"
fi
# as NAME COMMAND...: by the user of that VM, in place of this shell.
as() {
  local name=$1 user; shift
  [ -n "${GROUP:-}" ] || exec "$@"
  case $name in answerer) user=4242 ;; sender) user=4243 ;; visitor) user=4244 ;; *) user=4245 ;; esac
  install -d -m 700 -o "$user" "$meeting/home-$user"
  exec setpriv --reuid "$user" --regid "$user" --groups "$GROUP" env HOME="$meeting/home-$user" \
    TMPDIR="$meeting/home-$user" ACRN_RUN_DIR="$meeting" "$@"
}

# GUESTS=DIR: images built elsewhere (a machine without a compiler).
guests=${GUESTS:-$work}
build() {
  gcc -m32 -march=i686 -Os -ffreestanding -fno-pic -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables \
    -fcf-protection=none -mgeneral-regs-only -fno-tree-loop-distribute-patterns -Wall -Wextra -Werror "${@:2}" \
    -DROUNDS="${BLOCKS}u" -DBLOCK_BYTES="${BLOCK_BYTES}u" -nostdlib -static -no-pie \
    -Wl,--build-id=none,-Ttext-segment=0x100000,-z,max-page-size=4096,-z,noseparate-code,-z,noexecstack,--no-warn-rwx-segments \
    -o "$guests/$1" "$here/guest.c"
}
if [ -z "${GUESTS:-}" ] || [ -n "${BUILD_ONLY:-}" ]; then
  chmod 755 "$guests"
  build sender -DROLE=SENDER && build answerer -DROLE=ANSWERER && build visitor -DROLE=VISITOR \
    && build last -DROLE=VISITOR -DLAST=1 && build flooder -DROLE=FLOODER || { echo "skipped: no gcc with 32 bits"; exit 0; }
fi
[ -z "${BUILD_ONLY:-}" ] || exit 0

# start IMAGE NAME: in the background, $! is its process; what it says is in $work/NAME.log.
start() {
  # shellcheck disable=SC2086
  as "$2" $DM --hypervisor "$ENGINE" ${CPUS:+--cpu_affinity $CPUS} ${GROUP:+--socket-group $GROUP} -m 128M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s "5,ivshmem,hv:/$region,2" \
    -E "$guests/$1" "${2:0:8}-$$" < /dev/null > "$work/$2.log" 2>&1 &
}
# says FILE TEXT: until it says so.
says() {
  local end=$((SECONDS + 150))
  until grep -q "$2" "$work/$1.log" 2> /dev/null; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

begin=$EPOCHREALTIME
start answerer answerer; answerer=$!
says answerer listening || { fail "the answerer did not start"; cat "$work/answerer.log"; }
start sender sender; sender=$!
says sender listening || { fail "the sender did not start"; cat "$work/sender.log"; }
(sleep "$LIMIT_S" && echo "a doorbell was lost, or time is too short" && kill -9 $sender $answerer) > "$work/limit" 2> /dev/null &
limit=$!

start flooder flooder; flooder=$!
says flooder flooding || { fail "the flooder did not start"; cat "$work/flooder.log"; }
sleep 1
kill -9 $flooder; wait $flooder 2> /dev/null

for visit in $(seq "$VISITS"); do
  kill -0 $sender 2> /dev/null || break
  image=visitor; [ "$visit" != "$VISITS" ] || image=last
  start $image visitor
  visitor=$!
  wait $visitor || fail "visit $visit ended with status $?"
  grep -q '^done, wrong 0' "$work/visitor.log" || fail "visit $visit: $(tail -3 "$work/visitor.log")"
done
wait $sender || fail "the sender ended with status $?"
wait $answerer || fail "the answerer ended with status $?"
end=$EPOCHREALTIME
pkill -P $limit 2> /dev/null; kill $limit 2> /dev/null; wait $limit 2> /dev/null
cat "$work/limit"

for name in sender answerer; do
  grep -q 'done, wrong 0' "$work/$name.log" || { fail "$name:"; grep -a -B2 -A2 WRONG "$work/$name.log" || tail -5 "$work/$name.log"; }
  echo "$name: $(tr -d '\r' < "$work/$name.log" | grep -aE '^(ticks|interrupts|blocks in all)' | tr '\n' ' ')"
done
ls /dev/shm/*"$region"* > /dev/null 2>&1 && fail "memory is left: $(ls /dev/shm/*"$region"*)"
# Names stay for the next VM of the user whose they are: of who was killed, and of a region that others had longer. No memory stays.
if [ -n "${GROUP:-}" ]; then
  left=$(find "$place" -type f -size +0 -o -type s ! -user 4245)
  [ -z "$left" ] || fail "left where the group meets: $left"
fi
# A socket file is left when no process has it.
[ -n "${GROUP:-}" ] || for socket in "${XDG_RUNTIME_DIR:-/nowhere}"/acrn/soft/vm-* /run/acrn/soft/vm-*; do
  [ -e "$socket" ] || continue
  grep -q " $socket\$" /proc/net/unix || { [ -e "$socket" ] && fail "a socket is left: $socket"; }
done
blocks=$((16#$(tr -d '\r' < "$work/sender.log" | sed -n 's/^blocks in all //p' | grep . || echo 0)))
awk -v e="$ENGINE" -v n=$blocks -v b="$BLOCK_BYTES" -v v="$VISITS" -v t0="$begin" -v t1="$end" -v f=$failures 'BEGIN {
  printf "doorbells on %s: %d doorbells, %.1f MB, %d visits, one killed, in %.1f s: %d failed\n", e, 2*n, n*b/1e6, v, t1-t0, f }'
[ $failures = 0 ]
