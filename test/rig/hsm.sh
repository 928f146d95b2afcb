#!/bin/bash
# The HSM conformance suite on the real driver of Linux (test/hypervisor/acrn/real-hsm.test.ts), without vitest, whose start
# takes minutes in the rig; then the driver's own answers beside the table of them.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
bundle=$repo/node_modules/.rig/real-hsm.mjs
if [ -z "${RIG:-}" ]; then
  rig=${HSMRIG:-$repo/../shared/tools/hsmrig}
  if [ ! -d "$rig" ]; then
    echo "skipped: no rig in $rig"
    exit 0
  fi
  "$repo/node_modules/.bin/esbuild" "$repo/test/hypervisor/acrn/real-hsm.test.ts" --bundle --platform=node --format=esm \
    --external:koffi --external:v86 --alias:vitest="$repo/test/support/small-vitest.mjs" --outfile="$bundle" --log-level=warning || exit 1
  export RIG_TIMEOUT=${RIG_TIMEOUT:-240}
  RIG_PASS=RIG_TIMEOUT exec "$rig/run.sh" "$(readlink -f "$0")"
fi
# One row of the table maps huge pages.
echo 64 > /proc/sys/vm/nr_hugepages
status=0
timeout -s KILL $((RIG_TIMEOUT - 20)) node "$bundle" || status=1
# Times and counters of the table are those of one run.
rows() { grep '^|' | sort; }
if diff <(rows < "$HSMRIG/t/ERRNO-TABLE.txt") <("$HSMRIG_BUILD/errtab" 2>&1 | rows); then
  echo "ok      the driver's answers are those of the table"
else
  echo "FAILED  the driver's answers are not those of the table"
  status=1
fi
exit $status
