#!/bin/bash
# Kernels that start with -E, on the embedded hypervisor: Multiboot 1 as ELF file and by the addresses of its header, Multiboot 2,
# PVH, each with a command line, a module and the map of RAM; and on KVM Debian's amd64 kernel as ELF file of 64 bits, by PVH, to its
# userspace.
#
#   test/rig/images.sh                     on KVM, in the rig (../shared/tools/hsmrig)
#   HYPERVISOR=soft test/rig/images.sh     on the software CPU, here
#
# Status: 0 passed, 1 failed, 125 the rig itself failed.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
hypervisor=${HYPERVISOR:-kvm}
build() {
  local here=$repo/test/rig way=$1 name=$2
  gcc -m32 -march=i686 -Os -ffreestanding -fno-pic -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables \
    -fcf-protection=none -mgeneral-regs-only -Wall -Wextra -Werror "-DWAY=$way" -nostdlib -static -no-pie \
    -Wl,--build-id=none,-T,"$GUESTS/images.ld",-z,max-page-size=4096,-z,noexecstack,--no-warn-rwx-segments -o "$GUESTS/$name" "$here/images.c"
}
# The header comes first.
build_all() {
  cat > "$GUESTS/images.ld" << 'END'
ENTRY(_start)
PHDRS { text PT_LOAD FLAGS(7); note PT_NOTE FLAGS(4); }
SECTIONS {
  . = 0x100000;
  .text : { *(.header) *(.text*) *(.rodata*) } :text
  .note.pvh : { *(.note.pvh) } :text :note
  .data : { *(.data*) edata = .; } :text
  .bss : { *(.bss*) *(COMMON) end = .; } :text
  /DISCARD/ : { *(.comment) *(.note.gnu*) }
}
END
  build 1 multiboot1 && build 2 kludge.elf && build 3 multiboot2 && build 4 pvh &&
    objcopy -O binary "$GUESTS/kludge.elf" "$GUESTS/kludge" && printf 'Mod!and more' > "$GUESTS/module"
}
# vmlinux FILE: the ELF file inside a bzImage that xz packed.
vmlinux() {
  python3 -c 'import lzma, sys
data = open(sys.argv[1], "rb").read()
sys.stdout.buffer.write(lzma.LZMADecompressor().decompress(data[data.index(b"\xfd7zXZ\0"):]))' "$1"
}

if is_outside && [ -z "${GUESTS:-}" ]; then
  GUESTS=$(mktemp -d)
  export GUESTS
  trap 'rm -rf "$GUESTS"' EXIT
  build_all || { echo "skipped: no gcc with 32 bits"; exit 0; }
fi
if is_outside && [ "$hypervisor" = kvm ]; then
  need_rig
  "$rig/build.sh" > /dev/null || exit 125
  vmlinux "$rig_build/vmlinuz" > "$GUESTS/vmlinux" 2> /dev/null
  export HYPERVISOR=kvm RIG_TIMEOUT=${RIG_TIMEOUT:-280}
  enter_rig GUESTS HYPERVISOR
  exit
fi

failures=0
[ "$hypervisor" = soft ] || mkdir -p /run/acrn
log=$(mktemp)
# run TEXT OPTION...
run() {
  local text=$1
  shift
  timeout -s KILL 120 $DM --hypervisor "$hypervisor" -m 256M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio \
    "$@" "im$$" < /dev/null > "$log" 2>&1
  local status=$?
  if grep -aq -- "$text" "$log" && [ $status = 0 ]; then echo "ok      $text"; else
    echo "FAILED  $text: status $status"
    tail -5 "$log"
    failures=$((failures + 1))
  fi
}
for way in multiboot1:MULTIBOOT1 kludge:MULTIBOOT1 multiboot2:MULTIBOOT2 pvh:PVH; do
  file=${way%:*}
  run "${way#*:}, told: .*$file and words, modules 1 as they are, with its RAM" -E "$GUESTS/$file" -r "$GUESTS/module" -B "$file and words"
done
if [ "$hypervisor" = kvm ] && [ -s "$GUESTS/vmlinux" ]; then
  run GUEST-UP -E "$GUESTS/vmlinux" -r "$HSMRIG_BUILD/guest-initrd.gz" \
    -B "console=ttyS0 panic=-1 quiet no_timer_check nokaslr tsc=reliable tsc_early_khz=$TSC_KHZ lpj=$((TSC_KHZ * 4)) pci=lastbus=0,noearly random.trust_cpu=1"
fi
rm -f "$log"
echo "images.sh: $failures failed"
[ "$failures" = 0 ]
