#!/bin/bash
# Debian's SeaBIOS on the embedded hypervisor: a boot sector that prints and reads a sector by INT 13h, from virtio-blk and
# from AHCI; a GRUB disc where grub-mkrescue is there. memtest86+ by -k.
#
#   HYPERVISOR=kvm test/soft/firmware.sh    on /dev/kvm; SLOW=4 gives everything four times as long
set -u
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bios=${BIOS:-/usr/share/seabios/bios-256k.bin}
ipxe=${IPXE:-/usr/lib/ipxe/ipxe.iso}
memtest=${MEMTEST:-/boot/memtest86+ia32.bin}
hypervisor=${HYPERVISOR:-soft}
slow=${SLOW:-1}
if [ "$hypervisor" = soft ] && [ ! -d "$repo/node_modules/v86" ]; then
  echo "skipped: the optional package v86 is not installed"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 143' TERM
failures=0

# vm SECONDS TEXT OPTION...: a VM that has to print TEXT, and to end by then if its guest powers off.
vm() {
  local seconds=$1 text=$2
  shift 2
  # The last lines are all that matters: firmware draws.
  timeout $((seconds * slow)) ${DM:-node "$repo/dist/acrn-dm.js"} --hypervisor "$hypervisor" -m 128M -s 1:0,lpc -l com1,stdio \
    "$@" "fw$$" < /dev/null > "$scratch/log" 2>&1 &
  local dm=$! end=$((SECONDS + seconds * slow))
  while kill -0 "$dm" 2> /dev/null && [ $SECONDS -lt $end ] && ! grep -aq -- "$text" "$scratch/log"; do sleep 0.2; done
  if [ "${STOP:-}" = 1 ]; then kill "$dm" 2> /dev/null; fi
  wait "$dm" 2> /dev/null
  # What it printed to its very end counts: a busy machine may take all of the time.
  grep -aq -- "$text" "$scratch/log"
}

check() {
  local what=$1
  shift
  if "$@"; then echo "ok      $what"; else
    echo "FAILED  $what"
    tail -c 2000 "$scratch/log"
    failures=$((failures + 1))
  fi
}

# powered_off: by the guest itself.
powered_off() { grep -aq 'poweroff: guest entered ACPI S5' "$scratch/log"; }

firmware() { vm 60 "$1" -s 0:0,hostbridge,model=i440fx --fw_cfg --bios "$bios" "${@:2}"; }

if [ -e "$bios" ]; then
  python3 "$repo/test/guest/boot-sector.py" "$scratch/disk.img"
  for disk in virtio-blk, ahci,hd:; do
    check "SeaBIOS boots a disk on ${disk%%,*}" firmware SECTOR-ONE -s "3,$disk$scratch/disk.img"
    check "its boot sector powers off" powered_off
  done
  if command -v grub-mkrescue xorriso > /dev/null && [ -d /usr/lib/grub/i386-pc ]; then
    mkdir -p "$scratch/iso/boot/grub"
    cat > "$scratch/iso/boot/grub/grub.cfg" << 'END'
serial --unit=0
terminal_input serial
terminal_output serial
echo GRUB-IS-HERE
outw 0x404 0x3400
END
    grub-mkrescue -d /usr/lib/grub/i386-pc -o "$scratch/grub.iso" "$scratch/iso" > "$scratch/grub.log" 2>&1
    check "GRUB comes from a disk on virtio-blk" firmware GRUB-IS-HERE -s "3,virtio-blk,$scratch/grub.iso,ro"
    check "GRUB comes from a CD on AHCI" firmware GRUB-IS-HERE -s "3,ahci,cd:$scratch/grub.iso"
  else
    echo "skipped: no grub-mkrescue with i386-pc"
  fi
  if [ -e "$ipxe" ]; then
    for disk in virtio-blk, ahci,cd:; do
      STOP=1 check "iPXE comes from its disc on ${disk%%,*}" firmware 'iPXE initialising devices...ok' -s "3,$disk$ipxe$([ $disk = ahci,cd: ] || echo ,ro)"
    done
  else
    echo "skipped: no iPXE in $ipxe"
  fi
else
  echo "skipped: no SeaBIOS in $bios"
fi

# shows_text: what a viewer sees is a text screen, with much of it in grey.
shows_text() {
  node --import tsx "$repo/test/soft/viewer.ts" "$scratch/vnc" shot "$scratch/screen.ppm" | grep -qx 720x400 &&
    [ "$(tail -c +16 "$scratch/screen.ppm" | od -An -v -tx1 -w3 | grep -c 'aa aa aa')" -gt 1000 ]
}
rom=${VGABIOS:-/usr/share/seabios/vgabios-virtio.bin}
# With KVM the window at 0xa0000 is RAM.
if [ -e "$bios" ] && [ -e "$rom" ] && [ "$hypervisor" = soft ]; then
  ${DM:-node "$repo/dist/acrn-dm.js"} --hypervisor soft -m 128M -s 1:0,lpc -l com1,stdio -s 0:0,hostbridge,model=i440fx \
    --fw_cfg "pci1af4,1050.rom,file=$rom" --bios "$bios" -s 4,virtio-gpu,geometry=800x600 \
    --display "vnc=unix:$scratch/vnc" "fw$$" < /dev/null > "$scratch/log" 2>&1 &
  dm=$!
  end=$((SECONDS + 60 * slow))
  while [ $SECONDS -lt $end ] && ! grep -aq 'No bootable device' "$scratch/log"; do sleep 0.2; done
  check "SeaBIOS writes text on the VGA of virtio-gpu" shows_text
  kill "$dm"
  wait "$dm" 2> /dev/null
else
  echo "skipped: no $rom, or not on the software CPU"
fi

if [ -e "$memtest" ]; then
  STOP=1 check "memtest86+ tests memory" vm 60 'Test #\|#3 ' -s 0:0,hostbridge -k "$memtest" -B console=ttyS0,115200
else
  echo "skipped: no memtest86+ in $memtest"
fi
echo "firmware.sh: $failures failed"
[ "$failures" = 0 ]
