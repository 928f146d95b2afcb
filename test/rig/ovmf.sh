#!/bin/bash
# UEFI firmware on the embedded hypervisor, on KVM: the shell, and from it a Linux by its EFI stub, from a disk on virtio-blk.
#
#   test/rig/ovmf.sh                in the rig (../shared/tools/hsmrig); LOCAL=1: on this machine's /dev/kvm, with K= and R=
#   WHAT="debian large acrn"        Debian's OVMF of 2 MiB, that of 4 MiB, ACRN's own (OVMF_ACRN=OVMF.fd)
#   LIMIT_S=240                     for each
#
# K is a kernel with an EFI stub, R a ramdisk whose init prints GUEST-UP and powers off: those of the rig by default.
# QEMU 7.2's emulation of SVM ends with a failed assertion (tcg_handle_interrupt) when a guest writes CR8 while an interrupt
# is pending, as firmware does at the end of each interrupt: a rig that dies of that is skipped.
# Status: 0 passed, 1 failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
if is_outside && [ "${LOCAL:-}" != 1 ]; then
  need_rig
  export WHAT=${WHAT:-} OVMF_ACRN=${OVMF_ACRN:-} LIMIT_S=${LIMIT_S:-}
  export RIG_TIMEOUT=${RIG_TIMEOUT:-780}
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  enter_rig WHAT OVMF_ACRN LIMIT_S 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  if grep -q 'tcg_handle_interrupt: assertion failed' "$log"; then
    echo "skipped: the rig's QEMU died of a guest's MOV to CR8"
    exit 0
  fi
  exit "$status"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 143' TERM
K=${K:-${HSMRIG_BUILD:-}/vmlinuz} R=${R:-${HSMRIG_BUILD:-}/guest-initrd.gz}
share=${OVMF_DIR:-/usr/share/OVMF}
if ! command -v mformat mcopy > /dev/null; then
  echo "skipped: no mtools"
  exit 0
fi
mkdir -p /run/acrn
truncate -s 64M "$scratch/esp.img"
mformat -i "$scratch/esp.img" -F ::
cat > "$scratch/startup.nsh" << END
echo SHELL-IS-HERE
vmlinuz.efi console=ttyS0 panic=-1 quiet no_timer_check nokaslr tsc=reliable ${TSC_KHZ:+tsc_early_khz=$TSC_KHZ lpj=$((TSC_KHZ * 4))} pci=lastbus=0,noearly random.trust_cpu=1 initrd=\\initrd.gz
END
mcopy -i "$scratch/esp.img" "$scratch/startup.nsh" ::startup.nsh
mcopy -i "$scratch/esp.img" "$K" ::vmlinuz.efi
mcopy -i "$scratch/esp.img" "$R" ::initrd.gz
failures=0

# run NAME OPTION...
run() {
  local name=$1 began=$SECONDS status
  shift
  timeout -s KILL "${LIMIT_S:-240}" $DM --hypervisor kvm -m 512M -s 1:0,lpc -l com1,stdio \
    -s "3,virtio-blk,$scratch/esp.img" "$@" "ovmf$$" < /dev/null > "$scratch/log" 2>&1
  status=$?
  for text in SHELL-IS-HERE GUEST-UP; do
    if grep -aq "$text" "$scratch/log"; then echo "ok      $name: $text"; else
      echo "FAILED  $name: no $text in $((SECONDS - began)) s (status $status)"
      failures=$((failures + 1))
    fi
  done
  [ $status = 0 ] || { echo "FAILED  $name: status $status"; failures=$((failures + 1)); }
  echo "        $name: $((SECONDS - began)) s"
  [ $failures = 0 ] || tail -c 1500 "$scratch/log" | tr -d '\033'
  [ -z "${OUT:-}" ] || cp "$scratch/log" "$OUT/ovmf-$name.log"
}

# debian NAME SUFFIX: code as it is, variables copied.
debian() {
  if [ ! -e "$share/OVMF_CODE$2.fd" ]; then
    echo "skipped: no $share/OVMF_CODE$2.fd"
    return
  fi
  cp "$share/OVMF_VARS$2.fd" "$scratch/vars$2.fd"
  run "$1" -s 0:0,hostbridge,model=i440fx --fw_cfg --ovmf "w,code=$share/OVMF_CODE$2.fd,vars=$scratch/vars$2.fd"
}
for what in ${WHAT:-debian large acrn}; do
  case $what in
    debian) debian debian "" ;;
    large) debian large _4M ;;
    acrn)
      if [ -e "${OVMF_ACRN:-}" ]; then run acrn -s 0:0,hostbridge --ovmf "$OVMF_ACRN"; else echo "skipped: OVMF_ACRN names none"; fi
      ;;
    *) echo "FAILED  $what is none of debian, large, acrn"; failures=$((failures + 1)) ;;
  esac
done
echo "ovmf.sh: $failures failed"
[ "$failures" = 0 ]
