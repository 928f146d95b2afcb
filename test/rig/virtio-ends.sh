#!/bin/bash
# ../guest/virtio-ends.sh through the real HSM driver.
export RIG_APPEND="fake_acrn.strict=0" # a device model that is killed cannot pause its VM
. "$(dirname "$0")/lib.sh"
. "$repo/test/guest/virtio-ends.sh"
