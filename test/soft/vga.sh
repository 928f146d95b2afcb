#!/bin/bash
# vga.sh: graphics without a driver for virtio-gpu. SeaBIOS with its VGA option ROM sets VBE modes for GRUB, whose mode
# Debian's vesafb takes over, and the 16-colour mode of VGA for a kernel, which has no driver for it. A picture written to
# /dev/fb0, or to the window at 0xa0000, has to be what a viewer shows, pixel by pixel; then virtio_gpu takes the screen from
# vesafb.
MODULES="virtio_pci virtio_gpu"
. "$(dirname "$0")/lib.sh"
bios=${BIOS:-/usr/share/seabios/bios-256k.bin}
rom=${VGABIOS:-/usr/share/seabios/vgabios-virtio.bin}
if [ ! -e "$bios" ] || [ ! -e "$rom" ]; then echo "skipped: no SeaBIOS with $rom"; exit 0; fi
if ! command -v grub-mkrescue xorriso > /dev/null || [ ! -d /usr/lib/grub/i386-pc ]; then
  echo "skipped: no grub-mkrescue with i386-pc"
  exit 0
fi
socket=$scratch/vnc
type_at_console

# virtio_gpu is loaded later.
mkdir -p "$scratch/order/lib"
zcat "$scratch/base.gz" | cpio -i --quiet --to-stdout '*lib/order' > "$scratch/order/lib/late"
: > "$scratch/order/lib/order"
(cd "$scratch/order" && printf 'lib/order\nlib/late\n' | cpio -o -H newc --quiet | gzip -1) >> "$scratch/base.gz"

# picture BITS WIDTH HEIGHT FRAMEBUFFER PPM: what the guest writes, and what is to be seen then. 1 bit: black and white.
picture() {
  node -e '
    const [bits, width, height] = process.argv.slice(1, 4).map(Number);
    const { writeFileSync } = require("fs");
    const stride = bits * width / 8;
    const raw = Buffer.alloc(stride * height);
    const ppm = Buffer.alloc(3 * width * height);
    let state = 7;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      const kind = (x >> 6) % 3;
      let value = kind === 0 ? x * 65793 + y * 257 : kind === 1 ? ((x ^ y) & 8 ? 0xffffff : 0x123456) : state >>> 8;
      let rgb = [(value >> 16) & 255, (value >> 8) & 255, value & 255];
      if (bits === 32) raw.writeUInt32LE(value & 0xffffff, 4 * (y * width + x));
      else if (bits === 16) {
        const [r, g, b] = [rgb[0] >> 3, rgb[1] >> 2, rgb[2] >> 3];
        raw.writeUInt16LE(r << 11 | g << 5 | b, 2 * (y * width + x));
        rgb = [r << 3 | r >> 2, g << 2 | g >> 4, b << 3 | b >> 2];
      } else {
        const isSet = (value & 0x80) !== 0;
        if (isSet) raw[y * stride + (x >> 3)] |= 0x80 >> (x & 7);
        rgb = [0, 0, 0].fill(isSet ? 255 : 0);
      }
      ppm.set(rgb, 3 * (y * width + x));
    }
    writeFileSync(process.argv[4], raw);
    writeFileSync(process.argv[5], Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), ppm]));' "$@"
}

# boot NAME BITS WIDTH HEIGHT LINES-OF-GRUB: until the picture is shown.
boot() {
  local name=$1 bits=$2 width=$3 height=$4
  mkdir -p "$scratch/pictures" "$scratch/iso/boot/grub"
  picture "$bits" "$width" "$height" "$scratch/pictures/picture" "$scratch/$name.ppm"
  guest_script "$soft_repo/test/guest/inside/vga.sh"
  (cd "$scratch/pictures" && echo picture | cpio -o -H newc --quiet | gzip -1) >> "$scratch/initrd"
  cp "$debian/vmlinuz" "$scratch/initrd" "$scratch/iso/"
  { printf '%s\n' 'serial --unit=0 --speed=115200' 'terminal_input serial' 'terminal_output serial' 'insmod all_video'
    cat; echo boot; } > "$scratch/iso/boot/grub/grub.cfg"
  grub-mkrescue -d /usr/lib/grub/i386-pc -o "$scratch/grub.iso" "$scratch/iso" > "$scratch/grub.log" 2>&1
  ${DM:-node "$soft_repo/dist/acrn-dm.js"} --hypervisor soft -m 256M -s 0:0,hostbridge,model=i440fx -s 1:0,lpc -l com1,stdio \
    --fw_cfg "pci1af4,1050.rom,file=$rom" --bios "$bios" -s "3,virtio-blk,$scratch/grub.iso,ro" \
    -s "4,virtio-gpu,geometry=800x600" --display "vnc=unix:$socket" "soft$$" < "$STDIN" > "$guest_log" 2>&1 &
  dm=$!
  check "$name: the guest shows a picture" wait_for 240 "SHOW first"
}
# shown FILE: by a viewer. The last of a picture may be under way when the guest has written it.
shown() { eventually 20 is_shown "$1"; }
is_shown() {
  node --import tsx "$soft_repo/test/soft/viewer.ts" "$socket" shot "$scratch/shot.ppm" && cmp "$1" "$scratch/shot.ppm"
}
end() { kill -TERM "$dm"; sleep 1; kill -TERM "$dm" 2> /dev/null; wait_dm 30; grep -a "^OK\|^BAD" "$guest_log"; }
words="console=ttyS0,115200 panic=-1 quiet mitigations=off noisapnp cryptomgr.notests vt.global_cursor_default=0 run=sh@/test"

boot "VBE, 32 bits" 32 800 600 << END
set gfxpayload=800x600x32
linux /vmlinuz $words
initrd /initrd
END
check "vesafb has it" grep -aq "OK fb0 is VESA VGA, 800" "$guest_log"
check "VBE, 32 bits: pixel by pixel" shown "$scratch/VBE, 32 bits.ppm"
# Linux takes vesafb away and its own driver has the screen.
echo >&8
check "virtio_gpu shows the picture" wait_for 60 "SHOW second"
check "virtio_gpu: pixel by pixel" shown "$scratch/VBE, 32 bits.ppm"
end

boot "VBE, 16 bits" 16 640 480 << END
set gfxpayload=640x480x16
linux /vmlinuz $words
initrd /initrd
END
check "VBE, 16 bits: pixel by pixel" shown "$scratch/VBE, 16 bits.ppm"
end

boot "VGA, 16 colours" 1 640 480 << END
linux16 /vmlinuz $words vga=0x112
initrd16 /initrd
END
check "VGA, 16 colours: pixel by pixel" shown "$scratch/VGA, 16 colours.ppm"
end
finish
