#!/bin/bash
# starts.sh: VMs of the embedded hypervisor that start at the same moment, beside one that was killed, again and again.
#
#   ROUNDS=1000 test/soft/starts.sh      (20 without)
#   DM="node DIR/acrn-dm.js" …           another device model than dist/acrn-dm.js
#
# Each round kills a VM with -9 and starts three at once, one of them with the dead one's name, and one with the name of
# another that starts: two of the three must run, the third is refused, and nothing of the dead is left. Status: 0, or 1.
set -u
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
rounds=${ROUNDS:-20}
if [ ! -d "$repo/node_modules/v86" ]; then
  echo "skipped: the optional package v86 is not installed"
  exit 0
fi
scratch=$(mktemp -d)
export ACRN_RUN_DIR=$scratch/run
trap 'kill -9 $(jobs -p) 2> /dev/null; rm -rf "$scratch"' EXIT
trap 'exit 143' TERM

# vm NAME LOG: a VM in the background, idle once it runs.
vm() {
  rm -f "$scratch/$2.out"
  ${DM:-node "$repo/dist/acrn-dm.js"} --hypervisor soft -m 128M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio \
    -s "5,ivshmem,hv:/st$$,2" --cmd_monitor "$scratch/$1.sock" -k "$repo/examples/guest/demo.bzimage" -B demo=idle "$1" \
    < /dev/null > "$scratch/$2.out" 2> "$scratch/$2.err" &
}

# comes_up LOG PID: 0 when the guest sleeps, 1 when the program has ended before.
comes_up() {
  while ! grep -q 'idle: sleeping' "$scratch/$1.out" 2> /dev/null; do
    kill -0 "$2" 2> /dev/null || return 1
    sleep 0.05
  done
}

fail() {
  echo "   round $round: $1"
  tail -n 3 "$scratch"/*.err
  exit 1
}

round=0
vm "a$$" first
victim=$!
comes_up first "$victim" || fail "the first VM did not come up"
while [ $((round += 1)) -le "$rounds" ]; do
  kill -9 "$victim"
  wait "$victim" 2> /dev/null
  vm "a$$" one
  one=$!
  vm "b$$" two
  two=$!
  vm "b$$" three
  three=$!
  up=() down=()
  for name in one two three; do
    if comes_up "$name" "${!name}"; then up+=("$name"); else down+=("$name"); fi
  done
  [ ${#up[@]} = 2 ] && [ ${#down[@]} = 1 ] || fail "${#up[@]} of 3 came up (${up[*]})"
  wait "${!down[0]}"
  status=$?
  [ $status = 69 ] || [ $status = 73 ] || fail "the second of a name ended with $status"
  [ "${down[0]}" != one ] || fail "the dead one's name was not free"
  other=${up[1]}
  kill -INT "${!other}"
  wait "${!other}" || fail "$other ended with $?"
  victim=$one
  [ $((round % 100)) != 0 ] || [ "$round" = "$rounds" ] || echo "   $round rounds so far"
done
kill -INT "$victim"
wait "$victim" || fail "the last one ended with $?"
left=$(find "$scratch" /dev/shm /run/acrn/mngr -maxdepth 1 \( -name '*.sock' -o -name "*.st$$" -o -name "[ab]$$.*" \) 2> /dev/null)
[ -z "$left" ] || fail "left behind: $left"
echo "   $rounds rounds of three starts beside a killed VM: two run, the third is refused, nothing is left"
