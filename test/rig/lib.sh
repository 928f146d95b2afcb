# lib.sh: for the scripts beside it, each a test with a real Linux guest in the rig (../shared/tools/hsmrig, or $HSMRIG).
#
#   test/rig/virtio.sh                 builds what the guest needs, boots the rig, runs the rest of the script inside
#   DM="node DIR/acrn-dm.js" …         another device model than dist/acrn-dm.js
#   TRANSPORT="legacy modern" …        virtio transports, one after the other
#
# A script sources this file first. Outside of the rig that call does not come back; inside it defines what follows.
# Status: 0 passed, 1 failed, 125 the rig itself failed twice.

rig_repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

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
  local rig=${HSMRIG:-$rig_repo/../shared/tools/hsmrig} script try status
  local build=${HSMRIG_BUILD:-/var/tmp/hsmrig}
  script=$(readlink -f "$0")
  if [ ! -d "$rig" ]; then
    echo "skipped: no rig in $rig"
    exit 0
  fi
  "$rig/build.sh" > /dev/null || exit 125
  rig_build_guest "$build" || exit 125
  export DM=${DM:-node $rig_repo/dist/acrn-dm.js} TRANSPORT=${TRANSPORT:-} RIG_TIMEOUT=${RIG_TIMEOUT:-280}
  export RIG_PASS="DM TRANSPORT ${RIG_PASS:-}"
  RIG_OUT=${RIG_OUT:-$(mktemp -d)}
  export RIG_OUT
  for try in 1 2; do
    "$rig/run.sh" "$script" "$@"
    status=$?
    [ $status = 124 ] || [ $status = 125 ] || break
    echo "the rig itself failed with status $status (try $try)"
  done
  [ $status = 0 ] || echo "files of the run: $RIG_OUT"
  exit $status
}

[ -n "${RIG:-}" ] || rig_outside "$@"

# Inside.

set -u
failures=0
# Outside of the rig it can be watched, and kept.
guest_log=${OUT:-/run}/guest.log

# check WHAT COMMAND...: one thing that has to be so.
check() {
  local what=$1
  shift
  if "$@" > /run/check.log 2>&1; then
    echo "ok      $what"
  else
    echo "FAILED  $what: $*"
    tail -5 /run/check.log
    failures=$((failures + 1))
  fi
}

# Modules of the rig's own kernel by name, with what they depend on.
rig_modprobe() {
  local module
  for module in "$@"; do
    modprobe -d "$HSMRIG_BUILD/image" -S "$(cat "$HSMRIG_BUILD/ready")" --show-depends "$module" |
      awk '$1 == "insmod" { print $2 }' | while read -r module; do insmod "$module" 2> /dev/null; done
  done
}

# guest_script < TEXT: what the guest runs; lines it prints with "OK " or "BAD " are results.
guest_script() {
  local dir
  dir=$(mktemp -d)
  { echo 'export PATH=/sbin:/bin; ok() { echo "OK $*"; }; bad() { echo "BAD $*"; }'; cat; } > "$dir/test"
  (cd "$dir" && echo test | cpio -o -H newc --quiet | gzip -1) > "$dir/test.gz"
  cat "$HSMRIG_BUILD/virtio-guest.gz" "$dir/test.gz" > /run/initrd
}

# start_dm OPTION...: a guest with its console in $guest_log, in the background. $WORDS: more kernel words.
start_dm() {
  if [ -z "${runner:-}" ]; then
    echo "${HUGE_PAGES:-200}" > /proc/sys/vm/nr_hugepages
    mkdir -p /run/acrn /var/log
    "$HSMRIG_BUILD/runner" 0 & runner=$!
    sleep 0.3
  fi
  # shellcheck disable=SC2086
  $DM -m "${MEM:-128M}" -k "$HSMRIG_BUILD/vmlinuz" -r /run/initrd --cpu_affinity 0 \
    -B "console=ttyS0 panic=-1 quiet no_timer_check nokaslr tsc=reliable tsc_early_khz=$TSC_KHZ lpj=$((TSC_KHZ * 4)) pci=lastbus=0,noearly random.trust_cpu=1 run=sh@/test ${WORDS:-}" \
    -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio "$@" vm1 < "${STDIN:-/dev/null}" > "$guest_log" 2>&1 &
  dm=$!
}

# wait_dm SECONDS: until the device model ends; its status.
wait_dm() {
  local end=$((SECONDS + $1))
  while kill -0 "$dm" 2> /dev/null && [ $SECONDS -lt $end ]; do sleep 0.5; done
  if kill -0 "$dm" 2> /dev/null; then
    echo "FAILED  the guest takes longer than $1 s"
    kill -KILL "$dm"
    failures=$((failures + 1))
  fi
  wait "$dm"
}

# wait_for SECONDS TEXT [FILE]: until the guest (or FILE) says so.
wait_for() {
  local end=$((SECONDS + $1))
  while [ $SECONDS -lt $end ]; do
    grep -aq -- "$2" "${3:-$guest_log}" 2> /dev/null && return
    kill -0 "$dm" 2> /dev/null || break
    # Looking takes the guest's time.
    sleep 0.7
  done
  echo "waited for \"$2\""
  return 1
}

# Results of the guest, and that it came to its end.
guest_results() {
  grep -aE '^(OK|BAD) ' "$guest_log" | tr -d '\r' | sed 's/^/  guest: /'
  failures=$((failures + $(grep -acE '^BAD ' "$guest_log")))
  if ! grep -aq "${1:-GUEST-DONE}" "$guest_log"; then
    echo "FAILED  the guest did not come to its end"
    failures=$((failures + 1))
  fi
  [ "$failures" = 0 ] || tail -30 "$guest_log"
}

# transports: what TRANSPORT asks for, or the one guests of the C device model have.
transports() { echo "${TRANSPORT:-legacy}"; }

# Ends the script: with what was counted.
finish() {
  [ -z "${runner:-}" ] || kill "$runner"
  echo "${0##*/}: $failures failed"
  [ "$failures" = 0 ]
  exit
}
