#!/bin/bash
# Two User VMs on the embedded hypervisor. One writes a text into the memory they share and rings the other's doorbell;
# then they talk over their vUARTs, which two-vms.json connects. Both power off by themselves. HYPERVISOR=kvm: on /dev/kvm.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)

if [ -z "${DM:-}" ] && [ ! -e "$repo/dist/acrn-dm.js" ]; then
  echo "${0##*/}: $repo/dist/acrn-dm.js is not there: run npm run build, or name another command by DM=" >&2
  exit 69
fi
dm=${DM:-node "$repo/dist/acrn-dm.js"}
if ! command -v "${dm%% *}" > /dev/null; then
  echo "${0##*/}: there is no ${dm%% *}: DM= names the command" >&2
  exit 69
fi

# vm NAME VUART_INDEX COMMANDS: one VM, its console lines marked with its name
vm() {
  ${DM:-node "$repo/dist/acrn-dm.js"} --hypervisor "${HYPERVISOR:-soft}" --scenario "$here/two-vms.json" -m 128M \
    --logger_setting console,level=1 \
    -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio \
    -s 5,ivshmem,hv:/two_vms,2 \
    -s 6,uart,vuart_idx:"$2" \
    -k "$repo/examples/guest/demo.bzimage" -B "$3" \
    "$1" < /dev/null | sed -u "s/^/$1: /"
}

vm alice 1 "demo=ivshmem-recv demo=vuart-echo" &
vm bob 1 "demo=ivshmem-send,hello-alice demo=vuart-send,how-are-you"
wait
