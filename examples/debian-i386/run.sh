#!/bin/bash
# run.sh [KERNEL WORDS...]: boots a stock Debian i386 kernel on the embedded hypervisor, shows what it finds, powers off.
#   ./run.sh keep             stays in a shell; `poweroff -f` ends it
#   ./run.sh run=free@-m      runs a command in the guest (@ stands for a blank)
# DM, MEM and DM_OPTIONS change the program, the memory and add options.
# What the kernel is told besides saves half of its start on a CPU made of software: no detours against speculation that
# does not happen here, no search for ISA cards, no self tests of its ciphers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
dir=${DEBIAN_I386:-$repo/.cache/debian-i386}
if [ -z "${DM:-}" ] && [ ! -e "$repo/dist/acrn-dm.js" ]; then
  echo "${0##*/}: $repo/dist/acrn-dm.js is not there: run npm run build, or name another command by DM=" >&2
  exit 69
fi
dm=${DM:-node "$repo/dist/acrn-dm.js"}
if ! command -v "${dm%% *}" > /dev/null; then
  echo "${0##*/}: there is no ${dm%% *}: DM= names the command" >&2
  exit 69
fi
"$here/fetch.sh" "$dir"
[ -e "$dir/initramfs.gz" ] && [ "$dir/initramfs.gz" -nt "$here/init" ] || "$here/mkinitramfs.sh" "$dir"
# shellcheck disable=SC2086
exec ${DM:-node "$repo/dist/acrn-dm.js"} --hypervisor soft -m "${MEM:-256M}" \
  -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio \
  -s 5,ivshmem,hv:/shared,2 -s 6,uart,vuart_idx:1 ${DM_OPTIONS:-} \
  -k "$dir/vmlinuz" -r "$dir/initramfs.gz" \
  -B "console=ttyS0 panic=-1 quiet mitigations=off noisapnp cryptomgr.notests ${*:-}" debian
