#!/bin/bash
# Every way a VM is ended from outside, and what the kernel driver sees of it. The guest's CPU stands still: nobody plays
# it, and what it would ask for comes from /dev/fake_acrn.
export RIG_TIMEOUT=${RIG_TIMEOUT:-600}
. "$(dirname "$0")/lib.sh"

here=$(dirname "$(readlink -f "$0")")
echo 300 > /proc/sys/vm/nr_hugepages
mkdir -p /run/acrn /var/log
exec 9<> /dev/fake_acrn
log=$guest_log

# start [OPTION...]: until the VM runs. $NODE_WORDS: options for node.
start() {
  echo > /proc/fake_acrn_log
  # shellcheck disable=SC2086
  NODE_OPTIONS=${NODE_WORDS:-} $DM -m 128M -k "$HSMRIG_BUILD/vmlinuz" --cpu_affinity 0 \
    -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio "$@" vm1 < /dev/null > $log 2>&1 &
  dm=$!
  wait_for 60 START_VM /proc/fake_acrn_log || cat $log
}

# guest COMMAND...: one access of the guest; prints what it read. One that ends the life is never completed.
guest() {
  local answer
  { echo "$* timeout=20000" >&9; } 2> /dev/null || return
  read -r answer <&9
  answer=${answer#*value=}
  echo "${answer%% *}"
}

# ended STATUS: the device model ends by itself, with this status, having paused the VM and then destroyed it.
ended() {
  wait_dm 60
  check "status $1" test $? = "$1"
  local calls
  calls=$(grep -oE 'PAUSE_VM|DESTROY_VM' /proc/fake_acrn_log | tr '\n' ' ')
  # A second PAUSE_VM does no harm: the C device model sends one more before it destroys, too.
  check "paused, then destroyed ($calls)" grep -qE '^(PAUSE_VM ){1,2}DESTROY_VM $' <<< "$calls"
  echo vms >&9
  local left
  read -r left <&9
  check "nothing is left in the hypervisor" grep -qE '^none$|state=off .*vdevs=0' <<< "$left"
}

acpi_on() { guest pio w 0xb2 1 0xa0 > /dev/null && guest pio w 0x402 2 0x100 > /dev/null; }

for signal in INT HUP; do
  echo "-- SIG$signal"
  start
  kill -$signal "$dm"
  ended 0
done

echo "-- SIGTERM, and the guest does not know ACPI"
start
kill -TERM "$dm"
ended 0

echo "-- SIGTERM, the guest is told by its power button"
start
acpi_on
kill -TERM "$dm"
wait_for 30 "pressed the power button"
check "PWRBTN_STS" test $(($(guest pio r 0x400 2) & 0x100)) = 256
check "the VM runs on" kill -0 "$dm"
guest pio w 0x404 2 0x3400 > /dev/null
ended 0

echo "-- an uncaught exception"
cat > /run/throw.cjs << 'END'
setInterval(() => {
  if (require('node:fs').existsSync('/run/throw')) throw new Error('thrown by the test');
}, 300);
END
NODE_WORDS="--require /run/throw.cjs" start
touch /run/throw
ended 70
check "it is reported" grep -q "thrown by the test" $log

echo "-- the socket of acrnctl"
start
# By its process: what the crash before it left is swept away about now.
for ((i = 0; i < 300; i++)); do compgen -G "/run/acrn/mngr/vm1.monitor.$dm.socket" > /dev/null && break; sleep 0.2; done
check "query: running" test "$(node "$here/manager.mjs" vm1 query)" = 0
acpi_on
check "stop is taken" test "$(node "$here/manager.mjs" vm1 stop)" = 0
check "stop presses the power button" test $(($(guest pio r 0x400 2) & 0x100)) = 256
check "stop -f is taken" test "$(node "$here/manager.mjs" vm1 stop-force)" = 0
ended 0
check "the socket is gone" test -z "$(ls /run/acrn/mngr)"

echo "-- the command monitor"
start --cmd_monitor /run/monitor.sock
check "destroy is taken" test "$(node "$here/manager.mjs" /run/monitor.sock '{"command":"destroy"}')" = '{"ack":0}'
ended 0

echo "-- full resets"
start
for life in 1 2 3; do
  guest pio w 0xcf9 1 0xe > /dev/null
  for ((i = 0; i < 100; i++)); do
    [ "$(grep -c START_VM /proc/fake_acrn_log)" = $((life + 1)) ] && break
    sleep 0.2
  done
done
calls=$(grep -oE '(CREATE|START|PAUSE|DESTROY)_VM' /proc/fake_acrn_log | tr '\n' ' ')
life="CREATE_VM START_VM PAUSE_VM DESTROY_VM "
check "four lives" test "$calls" = "$life$life${life}CREATE_VM START_VM "
kill -INT "$dm"
wait_dm 60
check "status 0" test $? = 0
finish
