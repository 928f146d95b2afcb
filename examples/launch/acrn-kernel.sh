#!/bin/bash
# A User VM from a bzImage on ACRN, with the devices the hypervisor itself emulates: an ivshmem region and a PCI vUART.
# Both must be given to this VM in the scenario, under these names and sizes.
#   acrn-kernel.sh KERNEL RAMDISK [VM_NAME]
# acrnctl can add it, as the README here says.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: ${0##*/} KERNEL RAMDISK [VM_NAME]" >&2
  exit 64
fi
kernel=$1 ramdisk=$2

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
  acrn-dm() {
    [ -e "$here" ] || die "no acrn-dm on PATH, and none in this checkout: DM=/folder/acrn-dm names one"
    node "$here" "$@"
  }
fi

acrn-dm --hypervisor acrn -m 512M --cpu_affinity "${CPUS:-0,1}" \
  -s 0:0,hostbridge \
  -s 1:0,lpc -l com1,stdio \
  -s 5,ivshmem,hv:/shm_region_0,2 \
  -s 6,uart,vuart_idx:1 \
  -k "$kernel" -r "$ramdisk" -B "console=ttyS0 panic=1" \
  "${3:-VM1}"
