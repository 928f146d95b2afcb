#!/bin/bash
# display.sh: Debian's virtio_gpu and virtio_input on the embedded hypervisor, seen by a viewer. A picture written to
# /dev/fb0 has to be what the viewer shows, pixel by pixel, also after the viewer asked for another size; keys and the
# pointer have to reach the guest's event devices.
#   VIEWER=tigervnc test/soft/display.sh   Debian's tigervnc-viewer under Xvfb, with xdotool, xwd and netpbm; without it
#                                          a viewer of our own
#   VIEWER=sdl test/soft/display.sh        --display sdl in the place of a viewer, with Xvfb, xdotool, xwd and netpbm
MODULES="virtio_pci virtio_gpu virtio_input evdev"
. "$(dirname "$0")/lib.sh"
WIDTH=800 HEIGHT=600
NEW_WIDTH=640 NEW_HEIGHT=480
socket=$scratch/vnc
viewer() { node --import tsx "$soft_repo/test/soft/viewer.ts" "$socket" "$@"; }

# picture SEED: 800x600 in the form of the frame buffer (blue, green, red, 0): gradients, text-like lines and noise.
picture() {
  node -e '
    const [width, height, seed] = process.argv.slice(1).map(Number);
    const bytes = Buffer.alloc(4 * width * height);
    let state = seed;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      const kind = (x >> 7) % 3;
      const value = kind === 0 ? x * 65793 + y * 257 : kind === 1 ? ((x ^ y) & 8 ? 0xffffff : seed * 4660) : state >>> 8;
      bytes.writeUInt32LE(value & 0xffffff, 4 * (y * width + x));
    }
    process.stdout.write(bytes);' "$WIDTH" "$HEIGHT" "$1"
}
# expected PICTURE WIDTH HEIGHT: its upper left part as a PPM.
expected() {
  node -e '
    const [path, stride, width, height] = [process.argv[1], ...process.argv.slice(2).map(Number)];
    const bytes = require("fs").readFileSync(path);
    const out = Buffer.alloc(3 * width * height);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const at = 4 * (y * stride + x);
      out.set([bytes[at + 2], bytes[at + 1], bytes[at]], 3 * (y * width + x));
    }
    process.stdout.write(Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), out]));' "$1" "$WIDTH" "$2" "$3"
}

mkdir -p "$scratch/pictures"
picture 7 > "$scratch/pictures/picture"
picture 99 > "$scratch/pictures/picture2"
expected "$scratch/pictures/picture" $WIDTH $HEIGHT > "$scratch/first.ppm"
expected "$scratch/pictures/picture2" $NEW_WIDTH $NEW_HEIGHT > "$scratch/second.ppm"
guest_script "$soft_repo/test/guest/inside/display.sh"
(cd "$scratch/pictures" && printf 'picture\npicture2\n' | cpio -o -H newc --quiet | gzip -1) >> "$scratch/initrd"

# Those of a viewer: shot FILE, resize, type keys a b c, point at 400,300 with the left button.
own_shot() { viewer shot "$1"; }
own_resize() { viewer resize ${NEW_WIDTH}x$NEW_HEIGHT; }
own_keys() { viewer keys 30 48 46; }
own_point() { viewer point 400 300 1; }

xvfb_start() {
  export DISPLAY=:$((RANDOM % 400 + 100))
  Xvfb "$DISPLAY" -screen 0 1024x768x24 -nolisten tcp > "$scratch/xvfb.log" 2>&1 &
  sleep 2
}
tigervnc_start() {
  xvfb_start
  xtigervncviewer -SecurityTypes None -RemoteResize=0 -AutoSelect=0 -PreferredEncoding ZRLE "$@" "$socket" \
    > "$scratch/viewer.log" 2>&1 &
  tigervnc=$!
  # It tells of its menu at first.
  sleep "${MENU_S:-15}"
}

# window_shot WINDOW FILE [WIDTH HEIGHT]
window_shot() {
  eval "$(xdotool getwindowgeometry --shell "$1")"
  xwd -silent -root | xwdtopnm 2> /dev/null | pamcut -left "$X" -top "$Y" -width "${3:-$WIDTH}" -height "${4:-$HEIGHT}" |
    pamdepth 255 2> /dev/null | pnmtopnm > "$2"
}
# Without a window manager nobody else gives the window the focus.
window_keys() { xdotool windowfocus "$1" sleep 0.5 mousemove 5 5 sleep 0.5 key --delay 100 a b c; }
window_point() {
  eval "$(xdotool getwindowgeometry --shell "$1")"
  xdotool mousemove $((X + 400)) $((Y + 300)) sleep 0.5 click 1
}

sdl_window() { xdotool search --onlyvisible --name "soft$$" | tail -1; }
sdl_shot() { window_shot "$(sdl_window)" "$@"; }
sdl_keys() { window_keys "$(sdl_window)"; }
sdl_point() { window_point "$(sdl_window)"; }
sdl_resize() { xdotool windowsize "$(sdl_window)" $NEW_WIDTH $NEW_HEIGHT; }

tigervnc_window() { xdotool search --onlyvisible --name TigerVNC | tail -1; }
tigervnc_shot() { window_shot "$(tigervnc_window)" "$@"; }
tigervnc_keys() { window_keys "$(tigervnc_window)"; }
tigervnc_point() { window_point "$(tigervnc_window)"; }
tigervnc_resize() {
  kill "$tigervnc"
  xtigervncviewer -SecurityTypes None -RemoteResize=1 -DesktopSize=${NEW_WIDTH}x$NEW_HEIGHT -AutoSelect=0 \
    -PreferredEncoding ZRLE "$socket" >> "$scratch/viewer.log" 2>&1 &
  tigervnc=$!
  sleep "${MENU_S:-15}"
}
kind=${VIEWER:-own}
shown=vnc=unix:$socket
tools="Xvfb xdotool xwd xwdtopnm"
case $kind in
  own) tools="" ;;
  sdl) shown=sdl ;;
  tigervnc) tools="$tools xtigervncviewer" ;;
esac
for tool in $tools; do
  command -v "$tool" > /dev/null || { echo "skipped: there is no $tool"; exit 0; }
done
[ $kind != sdl ] || xvfb_start

WORDS="vt.global_cursor_default=0" start_dm --display "$shown" -s 4,virtio-gpu,geometry=${WIDTH}x$HEIGHT+0+0 \
  -s 5,virtio-input,display:keyboard -s 6,virtio-input,display:tablet
check "the guest shows a picture" wait_for "${BOOT_S:-200}" "SHOW first"
check "the guest listens" wait_for 60 LISTENING
[ $kind != tigervnc ] || tigervnc_start
# pictured FILE SHOT [WIDTH HEIGHT]: what the viewer shows. The last of it may be under way when the guest has written it.
pictured() { eventually 20 is_pictured "$@"; }
is_pictured() {
  local wanted=$1
  shift
  "${kind}_shot" "$@" && cmp "$wanted" "$1"
}
check "the viewer shows what was written to /dev/fb0, pixel by pixel" pictured "$scratch/first.ppm" "$scratch/shot1.ppm"
check "keys are pressed" "${kind}_keys"
for code in 30 48 46; do
  check "key $code went down in the guest" wait_for 20 "KEY 1 $code 1"
  check "key $code went up in the guest" wait_for 20 "KEY 1 $code 0"
done
check "the pointer moves" "${kind}_point"
check "x is right" wait_for 20 "POINTER 3 0 $(((400 * 32767 + 399) / 799))"
check "y is right" wait_for 20 "POINTER 3 1 $(((300 * 32767 + 299) / 599))"
check "the left button goes down in the guest" wait_for 20 "POINTER 1 272 1"
check "and up" wait_for 20 "POINTER 1 272 0"
check "another size is asked for" "${kind}_resize"
check "the guest shows another picture" wait_for 60 "SHOW second"
check "the viewer shows it, pixel by pixel" pictured "$scratch/second.ppm" "$scratch/shot2.ppm" $NEW_WIDTH $NEW_HEIGHT
kill -TERM "$dm"; sleep 1; kill -TERM "$dm" 2> /dev/null
wait_dm 30
check "the socket is gone" test ! -e "$socket"
guest_results "SHOW second"
finish
