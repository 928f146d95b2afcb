#!/bin/bash
# A Linux User VM from a disk image with UEFI firmware on ACRN, in the form of ACRN's own launch scripts: nothing differs.
# Run as root on the Service VM; `acrnctl add acrn-linux.sh` knows it afterwards, since the line that starts the VM begins
# with the program's name and ends with the VM's.
#   acrn-linux.sh [VM_NAME]     the name as in the scenario
set -euo pipefail

die() {
  echo "${0##*/}: $1" >&2
  exit 69
}
# DM=/folder/acrn-dm, or the first on PATH, or that of this checkout or package.
if [ -n "${DM:-}" ]; then
  command -v "$DM" > /dev/null || die "DM=$DM: there is no such program"
  PATH=$(dirname "$DM"):$PATH
elif ! command -v acrn-dm > /dev/null; then
  here=$(cd "$(dirname "$0")/../.." && pwd)/dist/acrn-dm.js
  [ -e "$here" ] && command -v node > /dev/null || die "no acrn-dm on PATH, and none in this checkout: DM=/folder/acrn-dm names one"
  acrn-dm() { node "$here" "$@"; }
fi

vm_name=${1:-POST_STD_VM1}
disk=${DISK:-/home/acrn/UserVM.img}
firmware=${OVMF:-/usr/share/acrn/bios/OVMF.fd}
tap=${TAP:-tap0}
cpus=${CPUS:-0,2}                             # local APIC ids of the CPUs this VM gets

# The CPUs leave the Service VM: offline, then handed to the hypervisor.
remove_cpu=/sys/devices/virtual/misc/acrn_hsm/remove_cpu
for apic_id in ${cpus//,/ }; do
  for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    number=${cpu##*cpu}
    [ "$number" != 0 ] && [ -e "$cpu/online" ] || continue
    id=$(awk -v n="$number" '/^processor/ { p = $3 } /^initial apicid/ && p == n { print $4 }' /proc/cpuinfo)
    [ "$id" = "$apic_id" ] || continue
    [ -e "$remove_cpu" ] || die "this is no Service VM of ACRN: CPU $number stays"
    [ -w "$remove_cpu" ] && [ -w "$cpu/online" ] || die "CPU $number cannot be given to the VM: run it as root"
    echo 0 > "$cpu/online"
    echo "$number" > "$remove_cpu"
  done
done

# A tap on the bridge of the Service VM.
if [ ! -e "/sys/class/net/$tap" ]; then
  command -v ip > /dev/null || die "$tap cannot be made: there is no ip (package iproute2)"
  [ "$(id -u)" = 0 ] || die "$tap cannot be made: run it as root"
  ip tuntap add dev "$tap" mode tap || die "$tap cannot be made"
  ip link set dev "$tap" master acrn-br0 2> /dev/null || echo "no bridge acrn-br0: $tap stays by itself"
  ip link set dev "$tap" up
fi

acrn-dm -m 1024M --cpu_affinity "$cpus" --ovmf "$firmware" \
  -s 0:0,hostbridge \
  -s 1:0,lpc -l com1,stdio \
  -s 3,virtio-blk,"$disk" \
  -s 4,virtio-net,tap="$tap" \
  -s 5,virtio-console,@pty:pty_port \
  --logger_setting "console,level=4;kmsg,level=3" \
  "$vm_name"
