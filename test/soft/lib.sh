# lib.sh: for the scripts beside it, each a test with a stock Debian i386 on the embedded hypervisor.
#
#   test/soft/life-cycle.sh            fetches the kernel at the first time, packs the guest's files, runs
#   DM="node DIR/acrn-dm.js" …         another device model than dist/acrn-dm.js
#   TRANSPORT="legacy modern" …        virtio transports, one after the other
#   KEEP=DIR …                         keeps the files of the run there
#
# A script sets $MODULES, what its guest loads, and sources this first. Status: 0 passed, 1 failed.

soft_repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
debian=${DEBIAN_I386:-$soft_repo/.cache/debian-i386}

if [ ! -d "$soft_repo/node_modules/v86" ]; then
  echo "skipped: the optional package v86 is not installed"
  exit 0
fi
if ! "$soft_repo/examples/debian-i386/fetch.sh" "$debian" > /dev/null; then
  echo "skipped: the Debian i386 packages could not be had"
  exit 0
fi

if [ -n "${KEEP:-}" ]; then mkdir -p "$KEEP"; fi
scratch=${KEEP:-$(mktemp -d)}
guest_log=$scratch/guest.log
# A network namespace and a tap of this run, see soft_network.
peer=soft-$$
tap=soft-$$
LOOK_S=0.1
. "$soft_repo/test/guest/lib.sh"

soft_cleanup() {
  # shellcheck disable=SC2046
  kill $(jobs -p) 2> /dev/null
  ! mountpoint -q "$scratch/mnt" || umount "$scratch/mnt"
  ! ip netns list 2> /dev/null | grep -qw "$peer" || ip netns del "$peer"
  ! ip link show "$tap" > /dev/null 2>&1 || ip link del "$tap"
  [ -n "${KEEP:-}" ] || rm -rf "$scratch"
}
trap soft_cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# shellcheck disable=SC2086
INITRAMFS=$scratch/base.gz "$soft_repo/examples/debian-i386/mkinitramfs.sh" "$debian" ${MODULES:-} > /dev/null

guest_script() { pack_guest_script "${1:-/dev/null}" | cat "$scratch/base.gz" - > "$scratch/initrd"; }

# start_dm OPTION...: a guest with its console in $guest_log, in the background. $WORDS: more kernel words.
start_dm() {
  # shellcheck disable=SC2086
  ${DM:-node "$soft_repo/dist/acrn-dm.js"} --hypervisor soft -m "${MEM:-256M}" -k "$debian/vmlinuz" -r "$scratch/initrd" \
    -B "console=ttyS0 panic=-1 quiet mitigations=off noisapnp cryptomgr.notests run=sh@/test ${WORDS:-}" \
    -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio "$@" "soft$$" < "${STDIN:-/dev/null}" > "$guest_log" 2>&1 &
  dm=$!
}

host_modules() { :; }
host_mke2fs() { mke2fs -q -t ext4 -b 4096 -I 256 "$1"; }
dm_was_killed() { :; }

# Ends the script: with what was counted.
finish() {
  echo "${0##*/}: $failures failed"
  [ "$failures" = 0 ]
  exit
}
