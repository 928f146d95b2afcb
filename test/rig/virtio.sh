#!/bin/bash
# ../guest/virtio.sh through the real HSM driver. MIB: 64 where there is time.
export MIB=${MIB:-12} RIG_PASS="MIB"
export RIG_TIMEOUT=${RIG_TIMEOUT:-$((230 + 6 * MIB))}
. "$(dirname "$0")/lib.sh"
. "$rig_repo/test/guest/virtio.sh"
