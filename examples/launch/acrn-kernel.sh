#!/bin/bash
# A User VM from a bzImage on ACRN, with the devices the hypervisor itself emulates: an ivshmem region and a PCI vUART.
# Both must be given to this VM in the scenario, under these names and sizes.
#   acrn-kernel.sh KERNEL RAMDISK [VM_NAME]
# The acrn-dm first on PATH is taken; DM=/folder/acrn-dm names another. acrnctl can add it, as the README here says.
set -euo pipefail
kernel=${1:?usage: acrn-kernel.sh KERNEL RAMDISK [VM_NAME]}
ramdisk=${2:?usage: acrn-kernel.sh KERNEL RAMDISK [VM_NAME]}

[ -z "${DM:-}" ] || PATH=$(dirname "$DM"):$PATH

acrn-dm --hypervisor acrn -m 512M --cpu_affinity "${CPUS:-0,1}" \
  -s 0:0,hostbridge \
  -s 1:0,lpc -l com1,stdio \
  -s 5,ivshmem,hv:/shm_region_0,2 \
  -s 6,uart,vuart_idx:1 \
  -k "$kernel" -r "$ramdisk" -B "console=ttyS0 panic=1" \
  "${3:-VM1}"
