# In the guest: frame buffers without a driver for the device. The host's part: test/soft/vga.sh.
fb=/sys/class/graphics/fb0
# No driver for 16 colours: each byte is eight pixels, in all planes as the BIOS left them.
if [ ! -e /dev/fb0 ]; then
  dd if=/picture of=/dev/mem bs=4096 seek=160 conv=notrunc 2> /dev/null && echo "SHOW first"
  sleep 600
fi
ok "fb0 is $(cat $fb/name), $(cat $fb/virtual_size), $(cat $fb/bits_per_pixel) bits, stride $(cat $fb/stride)"
for console in /sys/class/vtconsole/vtcon*; do
  ! grep -q "frame buffer" $console/name || echo 0 > $console/bind
done
cat /picture > /dev/fb0 && echo "SHOW first"
# Until the host has looked.
read -r _ < /dev/console
while read -r module; do insmod /lib/$module; done < /lib/late
for console in /sys/class/vtconsole/vtcon*; do
  ! grep -q "frame buffer" $console/name || echo 0 > $console/bind
done
ok "fb0 is $(cat $fb/name)"
cat /picture > /dev/fb0 && echo "SHOW second"
sleep 600
