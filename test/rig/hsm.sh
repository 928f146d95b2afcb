#!/bin/bash
# The HSM conformance suite on the real driver of Linux (test/hypervisor/acrn/real-hsm.test.ts); then the driver's own
# answers beside the table of them.
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
! is_outside || need_rig
bundle_suite test/hypervisor/acrn/real-hsm.test.ts real-hsm || exit 1
if is_outside; then
  export RIG_TIMEOUT=${RIG_TIMEOUT:-240}
  enter_rig RIG_TIMEOUT
  exit
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
