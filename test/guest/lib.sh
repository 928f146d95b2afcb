# lib.sh: for test scripts with a real Linux guest, in the rig (test/rig/lib.sh) or on the embedded hypervisor
# (test/soft/lib.sh). Those set before they source this:
#   scratch     a directory for the files of the run
#   guest_log   what the guest and the device model print
#   peer, tap   names for a network namespace and a tap
# and define
#   guest_script [FILE]   what the guest runs at its start; lines it prints with "OK " or "BAD " are results
#   start_dm OPTION...    in the background; $dm is its process
#   dm_was_killed         cleans up after kill -9
#   host_modules NAME...  what the host's kernel needs for its part
#   host_mke2fs IMAGE     makes ext4 where the guest has no mke2fs
# SLOW=2 waits twice as long for everything, on a machine that has much else to do.
set -u
failures=0
asked=0

# check WHAT COMMAND...: one thing that has to be so.
check() {
  local what=$1
  shift
  if "$@" > "$scratch/check.log" 2>&1; then
    echo "ok      $what"
  else
    echo "FAILED  $what: $*"
    tail -5 "$scratch/check.log"
    failures=$((failures + 1))
  fi
}

# wait_dm SECONDS: until the device model ends; its status.
wait_dm() {
  local end=$((SECONDS + $1 * ${SLOW:-1}))
  while kill -0 "$dm" 2> /dev/null && [ $SECONDS -lt $end ]; do sleep 0.5; done
  if kill -0 "$dm" 2> /dev/null; then
    echo "FAILED  the guest takes longer than $(($1 * ${SLOW:-1})) s"
    kill -KILL "$dm"
    failures=$((failures + 1))
  fi
  wait "$dm" 2> /dev/null
}

# wait_for SECONDS TEXT [FILE]: until the guest (or FILE) says so.
wait_for() {
  local end=$((SECONDS + $1 * ${SLOW:-1}))
  while [ $SECONDS -lt $end ]; do
    grep -aq -- "$2" "${3:-$guest_log}" 2> /dev/null && return
    kill -0 "$dm" 2> /dev/null || break
    # Looking takes the guest's time.
    sleep "${LOOK_S:-0.7}"
  done
  echo "waited for \"$2\""
  return 1
}

# eventually SECONDS COMMAND...: until the command succeeds; what it said the last time.
eventually() {
  local end=$((SECONDS + $1 * ${SLOW:-1}))
  shift
  until "$@" > "$scratch/eventually.log" 2>&1; do
    [ $SECONDS -lt $end ] || { cat "$scratch/eventually.log"; return 1; }
    sleep 0.5
  done
}

# pack_guest_script FILE: an initramfs with FILE as /test.
pack_guest_script() {
  mkdir -p "$scratch/test"
  { echo 'export PATH=/sbin:/bin; ok() { echo "OK $*"; }; bad() { echo "BAD $*"; }'; cat "$1"; } > "$scratch/test/test"
  (cd "$scratch/test" && echo test | cpio -o -H newc --quiet | gzip -1)
}

# type_at_console: what `guest` writes to becomes the guest's standard input; before start_dm.
type_at_console() {
  mkfifo "$scratch/console.in"
  exec 8<> "$scratch/console.in"
  STDIN=$scratch/console.in
}

# guest COMMAND [SECONDS]: typed at the guest's shell; the status is the command's.
guest() {
  asked=$((asked + 1))
  # What is typed is echoed: only the answer has a number in the brackets.
  printf '%s; echo "[$?]-%s"\n' "$1" $asked >&8
  wait_for "${2:-60}" "\[[0-9]*\]-$asked" > /dev/null || return
  grep -aq "\[0\]-$asked" "$guest_log"
}

# life NUMBER [SECONDS]: until the guest's shell is there for the so-manieth time.
life() {
  local end=$((SECONDS + ${2:-100} * ${SLOW:-1}))
  while [ $SECONDS -lt $end ]; do
    [ "$(grep -ac GUEST-DONE "$guest_log")" = "$1" ] && return
    kill -0 "$dm" || break
    sleep 0.2
  done
  return 1
}

# ticks: CPU time of the device model so far, in 1/100 s.
ticks() { awk '{ print $14 + $15 }' "/proc/$dm/stat"; }

# Results of the guest, and that it came to its end.
guest_results() {
  grep -aE '^(OK|BAD) ' "$guest_log" | tr -d '\r' | sed 's/^/  guest: /'
  failures=$((failures + $(grep -acE '^BAD ' "$guest_log")))
  if ! grep -aq "${1:-GUEST-DONE}" "$guest_log"; then
    echo "FAILED  the guest did not come to its end"
    failures=$((failures + 1))
  fi
  [ "$failures" = 0 ] || tail -30 "$guest_log"
}

# transports: what TRANSPORT asks for, or the one guests of the C device model have.
transports() { echo "${TRANSPORT:-legacy}"; }
