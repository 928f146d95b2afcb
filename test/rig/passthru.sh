#!/bin/bash
# Functions of a made-up host through the real HSM driver: a virtual root port with an endpoint behind it, a function with
# INTx and one with MSI-X, through start, system reset, full reset, stop and failed starts. The guest's CPU stands still.
export RIG_TIMEOUT=${RIG_TIMEOUT:-600}
export FAKEPCI=${FAKEPCI:-$(cd "$(dirname "$0")/../../.." && pwd)/shared/tools/hsmrec/fakepci.py} RIG_PASS="FAKEPCI"
[ -n "${HSMRIG:-}" ] && [ ! -e "$FAKEPCI" ] && FAKEPCI=$HSMRIG/../hsmrec/fakepci.py
if [ -z "${RIG:-}" ] && [ ! -e "$FAKEPCI" ]; then
  echo "skipped: no made-up PCI tree in $FAKEPCI"
  exit 0
fi
. "$(dirname "$0")/lib.sh"

echo 300 > /proc/sys/vm/nr_hugepages
mkdir -p /run/acrn /var/log
exec 9<> /dev/fake_acrn
log=$guest_log
python3 "$FAKEPCI" /run/pci wide 9a49
mount --bind /run/pci/devices /sys/bus/pci/devices

# ask COMMAND...: of the hypervisor; prints its answer.
ask() {
  echo "$*" >&9 || return
  local answer
  read -r answer <&9
  echo "$answer"
}

# start: until the VM runs, or the device model has ended.
start() {
  echo > /proc/fake_acrn_log
  $DM -m 128M -k "$HSMRIG_BUILD/vmlinuz" --cpu_affinity 0 -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio \
    -s 6,passthru,02/00/0,enable_ptm -s 7,passthru,00/1f/3 -s 8,passthru,0b/00/0,keep_gsi \
    vm1 < /dev/null > "$log" 2>&1 &
  dm=$!
}
calls() { grep -oE "$1" /proc/fake_acrn_log | tr '\n' ' '; }
# lives COUNT: until the VM was started so often.
lives() {
  local end=$((SECONDS + 60))
  while [ $SECONDS -lt $end ] && [ "$(grep -c START_VM /proc/fake_acrn_log)" -lt "$1" ]; do sleep 0.3; done
  test "$(grep -c START_VM /proc/fake_acrn_log)" = "$1"
}
holds() { grep -q "vdevs=1 pcidevs=3" <<< "$(ask vms)"; }
nothing_left() { grep -qE '^none$|state=off .*vdevs=0 pcidevs=0' <<< "$(ask vms)"; }
refused() { grep -E 'ASSIGN_PCIDEV|CREATE_VDEV|DESTROY_VDEV|PTDEV_INTR' /proc/fake_acrn_log | grep -qv '= 0$'; }
resets() { cat /run/pci/devices/0000:{02:00.0,00:1f.3,0b:00.0}/reset; }
clear_resets() { for at in 02:00.0 00:1f.3 0b:00.0; do : > "/run/pci/devices/0000:$at/reset"; done; }

echo "-- start"
start
check "the VM runs" lives 1
check "the hypervisor has a port and three functions" holds
check "the endpoint is behind the port" grep -q 'ASSIGN_PCIDEV .*vbdf=0x100 pbdf=0x200 .*= 0$' /proc/fake_acrn_log
check "every function was reset" test "$(resets)" = 111

echo "-- system reset"
clear_resets
ask pio w 0xcf9 1 6 timeout=20000 > /dev/null
check "the VM runs again" lives 2
check "the hypervisor has them all again" holds
order=$(calls 'DEASSIGN_PCIDEV|DESTROY_VDEV|RESET_VM|CREATE_VDEV| ASSIGN_PCIDEV')
check "they are given after RESET_VM ($order)" grep -qE 'DEASSIGN_PCIDEV.* RESET_VM +CREATE_VDEV .*ASSIGN_PCIDEV' <<< "$order"
check "every function was reset" test "$(resets)" = 111

echo "-- full reset"
ask pio w 0xcf9 1 0xe timeout=20000 > /dev/null
check "the VM runs again" lives 3
check "the hypervisor has them all again" holds
check "the bus behind the port is the same" test "$(grep -c 'ASSIGN_PCIDEV .*vbdf=0x100' /proc/fake_acrn_log)" -ge 3

echo "-- stop"
clear_resets
kill -INT "$dm"
wait_dm 60
check "status 0" test $? = 0
check "nothing is left in the hypervisor" nothing_left
check "no call was refused" eval '! refused'
check "every function was reset" test "$(resets)" = 111

for failing in "0x55 19" "0x53 22" "0x12 1"; do
  echo "-- a start in which hypercall ${failing% *} fails"
  ask fail $failing 1 > /dev/null
  start
  wait_dm 60
  check "status 1" test $? = 1
  check "nothing is left in the hypervisor" nothing_left
  check "what was given is taken back ($(calls 'DEASSIGN_PCIDEV| ASSIGN_PCIDEV'))" test \
    "$(grep -c ' ASSIGN_PCIDEV.*= 0$\|^ASSIGN_PCIDEV.*= 0$' /proc/fake_acrn_log)" = "$(grep -c 'DEASSIGN_PCIDEV.*= 0$' /proc/fake_acrn_log)"
done

echo "-- and the driver works on"
start
check "the VM runs" lives 1
kill -INT "$dm"
wait_dm 60
check "status 0" test $? = 0
[ "$failures" = 0 ] || { tail -20 "$log"; tail -40 /proc/fake_acrn_log; }
finish
