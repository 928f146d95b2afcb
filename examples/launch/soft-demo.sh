#!/bin/bash
# The demo guest on the embedded hypervisor: no ACRN, no KVM, no root. The same as `npm start`.
#   soft-demo.sh [BOOT_ARGUMENTS]     e.g. demo=echo; see examples/guest/README.md
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)

if [ -z "${DM:-}" ] && [ ! -e "$repo/dist/acrn-dm.js" ]; then
  echo "${0##*/}: $repo/dist/acrn-dm.js is not there: run npm run build, or name another command by DM=" >&2
  exit 69
fi
dm=${DM:-node "$repo/dist/acrn-dm.js"}
if ! command -v "${dm%% *}" > /dev/null; then
  echo "${0##*/}: there is no ${dm%% *}: DM= names the command" >&2
  exit 69
fi

exec ${DM:-node "$repo/dist/acrn-dm.js"} --hypervisor soft -m 128M \
  -s 0:0,hostbridge \
  -s 1:0,lpc -l com1,stdio \
  -s 5,ivshmem,hv:/demo,2 \
  -s 6,uart,vuart_idx:1 \
  -k "$repo/examples/guest/demo.bzimage" -B "${1:-demo=tour}" \
  demo
