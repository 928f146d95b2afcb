#!/bin/bash
# ../guest/virtio.sh through the real HSM driver, the disk served by a data thread, whose counts come together with the device
# thread's. MIB: 64 where there is time; a quarter of it goes over the network, where a mebibyte each way takes half a minute.
export MIB=${MIB:-12}
export NET_MIB=${NET_MIB:-$(((MIB + 3) / 4))} RIG_TIMEOUT=${RIG_TIMEOUT:-$((230 + 6 * MIB))}
export PATIENCE=${PATIENCE:-$((RIG_TIMEOUT - 20))} RIG_PASS="MIB NET_MIB PATIENCE"
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2034 # both for the script below
api_socket=/run/acrn/vm/vm1/api.sock disk_options=,iothread
. "$repo/test/guest/virtio.sh"
