# In the guest: Linux's virtio_gpu and virtio_input. The host's part: test/soft/display.sh.
fb=/sys/class/graphics/fb0
i=0; while [ ! -e /dev/fb0 ] && [ $i -lt 30 ]; do sleep 1; i=$((i + 1)); done
ok "fb0 is $(cat $fb/name), $(cat $fb/virtual_size), $(cat $fb/bits_per_pixel) bits, stride $(cat $fb/stride)"
# Only what is written is to be seen.
for console in /sys/class/vtconsole/vtcon*; do
  ! grep -q "frame buffer" $console/name || echo 0 > $console/bind
done
cat /picture > /dev/fb0 && echo "SHOW first"
event_of() { for d in /sys/class/input/event*; do ! grep -q "$1" $d/device/name || echo /dev/input/${d##*/}; done; }
keyboard=$(event_of "display keyboard") tablet=$(event_of "display tablet")
ok "keyboard $keyboard, tablet $tablet"
# struct input_event of 32 bits: time in 8 bytes, type, code, value. One at a time, as nothing here may be buffered.
events() {
  exec 3< $2
  while true; do
    set -- "$1" $(dd bs=16 count=1 <&3 2> /dev/null | od -An -v -tu2)
    echo "$1 $6 $7 $8"
  done
}
events KEY $keyboard &
events POINTER $tablet &
echo "LISTENING"
# A new size: fbdev takes the mode of the monitor that fits into what it has.
before=$(cat /sys/class/drm/card0-Virtual-1/modes | head -1)
i=0; while [ "$(head -1 /sys/class/drm/card0-Virtual-1/modes)" = "$before" ] && [ $i -lt 300 ]; do sleep 1; i=$((i + 1)); done
ok "a new mode: $(head -1 /sys/class/drm/card0-Virtual-1/modes), before it $before"
sleep 1
cat /picture2 > /dev/fb0 && echo "SHOW second"
sleep 600
