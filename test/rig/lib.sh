# lib.sh: for the scripts beside it, each a test with a real Linux guest in the rig (../shared/tools/hsmrig, or $HSMRIG).
#
#   test/rig/virtio.sh                 builds what the guest needs, boots the rig, runs the rest of the script inside
#   DM="node DIR/acrn-dm.js" …         another device model than dist/acrn-dm.js
#   TRANSPORT="legacy modern" …        virtio transports, one after the other
#   HYPERVISOR=kvm …                   on the embedded hypervisor with the rig's own KVM, no ACRN in between
#   SLOW=2 …                           waits twice as long for everything; RIG_TIMEOUT=SECONDS is for the whole
#
# A script sources this file first. Outside of the rig that call does not come back; inside it defines what follows.
# Status: 0 passed, 1 failed, 125 the rig itself failed twice.

. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"

# Outside.

# The guest's first files: busybox, Debian's modules, mke2fs with its libraries. Made once, beside what the rig built.
rig_build_guest() {
  local build=$1 base=$1/virtio-guest.gz version root module
  [ "$base" -nt "${BASH_SOURCE[0]}" ] && return
  version=$(cat "$build/ready")
  root=$(mktemp -d)
  mkdir -p "$root"/{bin,lib/x86_64-linux-gnu,lib64,sbin,tmp,mnt,etc}
  cp /etc/mke2fs.conf "$root/etc/"
  for module in virtio_pci virtio_blk virtio_net virtio_console virtio_rng virtio_input evdev ext4 crc32c_generic af_packet \
    vmw_vsock_virtio_transport i2c_virtio i2c_dev gpio_virtio; do
    modprobe -d "$build/image" -S "$version" --show-depends "$module" 2> /dev/null | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" "$root/lib/"
    echo "${module##*/}" >> "$root/lib/order"
  done
  strip --strip-debug "$root"/lib/*.ko
  cp "$(command -v mke2fs)" "$root/sbin/mke2fs"
  ldd "$root/sbin/mke2fs" | grep -o '/[^ ]*' | while read -r module; do cp --parents -L "$module" "$root/"; done
  (cd "$root" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -6) > "$root.gz"
  cat "$build/guest-initrd.gz" "$root.gz" > "$base.new" && mv "$base.new" "$base"
  rm -rf "$root" "$root.gz"
}

rig_outside() {
  local try status passed=${RIG_PASS:-}
  need_rig
  "$rig/build.sh" > /dev/null || exit 125
  rig_build_guest "$rig_build" || exit 125
  export TRANSPORT=${TRANSPORT:-} HYPERVISOR=${HYPERVISOR:-acrn} SLOW=${SLOW:-1}
  export RIG_TIMEOUT=${RIG_TIMEOUT:-280}
  RIG_OUT=${RIG_OUT:-$(mktemp -d)}
  export RIG_OUT
  for try in 1 2; do
    # shellcheck disable=SC2086 # names
    enter_rig TRANSPORT HYPERVISOR SLOW $passed
    status=$?
    [ $status = 124 ] || [ $status = 125 ] || break
    echo "the rig itself failed with status $status (try $try)"
  done
  [ $status = 0 ] || echo "files of the run: $RIG_OUT"
  exit $status
}

! is_outside || rig_outside

# Inside.

scratch=/run
# Outside of the rig it can be watched, and kept.
guest_log=${OUT:-/run}/guest.log
peer=peer
tap=tap0
. "$repo/test/guest/lib.sh"

# host_modules NAME...: of the rig's own kernel, with what they depend on.
host_modules() {
  local module
  for module in "$@"; do
    modprobe -d "$HSMRIG_BUILD/image" -S "$(cat "$HSMRIG_BUILD/ready")" --show-depends "$module" |
      awk '$1 == "insmod" { print $2 }' | while read -r module; do insmod "$module" 2> /dev/null; done
  done
}

# guest_script [FILE]: what the guest runs at its start; lines it prints with "OK " or "BAD " are results.
guest_script() { pack_guest_script "${1:-/dev/null}" | cat "$HSMRIG_BUILD/virtio-guest.gz" - > /run/initrd; }

# start_dm OPTION...: a guest with its console in $guest_log, in the background. $WORDS: more kernel words; $CPUS.
start_dm() {
  if [ -z "${runner:-}" ] && [ "$HYPERVISOR" = acrn ]; then
    echo "${HUGE_PAGES:-200}" > /proc/sys/vm/nr_hugepages
    mkdir -p /run/acrn /var/log
    "$HSMRIG_BUILD/runner" 0 & runner=$!
    sleep 0.3
  fi
  # shellcheck disable=SC2086
  $DM --hypervisor "$HYPERVISOR" -m "${MEM:-128M}" -k "$HSMRIG_BUILD/vmlinuz" -r /run/initrd --cpu_affinity "${CPUS:-0}" \
    -B "console=ttyS0 panic=-1 quiet no_timer_check nokaslr tsc=reliable tsc_early_khz=$TSC_KHZ lpj=$((TSC_KHZ * 4)) pci=lastbus=0,noearly random.trust_cpu=1 run=sh@/test ${WORDS:-}" \
    -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio "$@" vm1 < "${STDIN:-/dev/null}" > "$guest_log" 2>&1 &
  dm=$!
}

# The guest makes its file systems itself.
host_mke2fs() { :; }

# dm_was_killed: the runner lets go of a VM whose device model is gone.
dm_was_killed() {
  kill "$runner" 2> /dev/null
  unset runner
}

# Ends the script: with what was counted.
finish() {
  [ -z "${runner:-}" ] || kill "$runner"
  echo "${0##*/}: $failures failed"
  [ "$failures" = 0 ]
  exit
}
