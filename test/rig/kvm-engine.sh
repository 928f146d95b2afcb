#!/bin/bash
# test/hypervisor/kvm/real-kvm.test.ts on the rig's KVM, without vitest, whose start takes minutes there.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
bundle=$repo/node_modules/.rig/real-kvm.mjs
if [ -z "${RIG:-}" ]; then
  rig=${HSMRIG:-$repo/../shared/tools/hsmrig}
  if [ ! -d "$rig" ]; then
    echo "skipped: no rig in $rig"
    exit 0
  fi
  "$repo/node_modules/.bin/esbuild" "$repo/test/hypervisor/kvm/real-kvm.test.ts" --bundle --platform=node --format=esm \
    --external:koffi --external:v86 --alias:vitest="$repo/test/support/small-vitest.mjs" --outfile="$bundle" --log-level=warning || exit 1
  export RIG_TIMEOUT=${RIG_TIMEOUT:-240}
  RIG_PASS=RIG_TIMEOUT exec "$rig/run.sh" "$(readlink -f "$0")"
fi
mkdir -p /run/acrn
echo 200 > /proc/sys/vm/nr_hugepages
exec timeout -s KILL $((RIG_TIMEOUT - 20)) node "$bundle"
