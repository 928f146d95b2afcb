#!/bin/bash
# USB devices of the host, by libusb and without udev. STEPS (default: all three, in one guest):
#
#   stick    a memory stick on a real xHCI host: the guest writes MIB MiB, and the host reads them there
#   gadget   another one (Linux's mass storage gadget on dummy_hcd) is pulled out and plugged in while the guest writes
#   tablet   QEMU's tablet: the guest's driver has it at once, it stays, and what is pointed at arrives
#
# By hand: two minutes, sixteen on a machine that had much else to do. SLOW=4 gives everything four times as long.
export MIB=${MIB:-32} SLOW=${SLOW:-1} STEPS=${STEPS:-stick gadget tablet} RIG_PASS="MIB STEPS"
export RIG_TIMEOUT=${RIG_TIMEOUT:-$((SLOW * (200 + 5 * MIB)))}

# Outside: the stick is a file, and which modules it all takes is known faster here.
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
if is_outside; then
  build=$rig_build
  [ ! -d "$rig" ] || "$rig/build.sh" > /dev/null || exit 125
  export RIG_OUT=${RIG_OUT:-$(mktemp -d)}
  truncate -s 0 "$RIG_OUT/stick" && truncate -s 64M "$RIG_OUT/stick"
  modules() {
    local module
    for module in "$@"; do
      modprobe -d "$build/image" -S "$(cat "$build/ready")" --show-depends "$module" 2> /dev/null
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
  }
  modules xhci_pci usb_storage sd_mod usbhid hid_generic dummy_hcd libcomposite usb_f_mass_storage ext4 crc32c_generic \
    > "$RIG_OUT/host-modules"
  modules xhci_pci usb_storage sd_mod usbhid hid_generic evdev > "$RIG_OUT/guest-modules"
  export RIG_QEMU="-device qemu-xhci,id=x -drive if=none,id=u,file=$RIG_OUT/stick,format=raw
    -device usb-storage,bus=x.0,drive=u -device usb-tablet,bus=x.0 -qmp unix:$RIG_OUT/qmp,server=on,wait=off"
  # Whoever is inside asks for the tablet to be moved, and its button to be pressed, by a file.
  rm -f "$RIG_OUT/move"
  event() { echo "{\"type\": \"$1\", \"data\": {$2}}"; }
  send() { echo "{\"execute\": \"input-send-event\", \"arguments\": {\"events\": [$1]}}"; sleep 1; }
  while sleep 0.5; do
    [ -e "$RIG_OUT/move" ] || continue
    rm -f "$RIG_OUT/move"
    {
      echo '{"execute": "qmp_capabilities"}'
      send "$(event abs '"axis": "x", "value": 12345'), $(event abs '"axis": "y", "value": 23456')"
      send "$(event btn '"button": "left", "down": true')"
      send "$(event btn '"button": "left", "down": false')"
    } | socat -t 5 - "UNIX-CONNECT:$RIG_OUT/qmp" > "$RIG_OUT/qmp.log"
  done &
  mover=$!
  trap 'kill "$mover"' EXIT
fi
. "$(dirname "$0")/lib.sh"
has() { case " $STEPS " in *" $1 "*) ;; *) false ;; esac; }

while read -r module; do insmod "$module" 2> /dev/null; done < "$OUT/host-modules"

# A thing of sysfs that is there a moment later.
wait_file() {
  for _ in $(seq 200); do
    [ -e "$1" ] && return
    sleep 0.2
  done
  return 1
}
# port_of PRODUCT: where a device of that name is, as the kernel names it: BUS-PORT. Waits for it.
port_of() {
  local file name
  for _ in $(seq 200); do
    for file in /sys/bus/usb/devices/[0-9]*-[0-9]*/product; do
      read -r name < "$file" 2> /dev/null && [ "$name" = "$1" ] && file=${file%/product} && echo "${file##*/}" && return
    done
    sleep 0.2
  done
  return 1
}

ports=
if has stick; then
  stick=$(port_of "QEMU USB HARDDRIVE")
  ports=$stick
fi
if has gadget; then
  # What it holds is a file here.
  mount -t configfs none /sys/kernel/config 2> /dev/null
  gadget=/sys/kernel/config/usb_gadget/rig
  mkdir -p $gadget/strings/0x409 $gadget/configs/c.1 $gadget/functions/mass_storage.0
  echo 0x0525 > $gadget/idVendor
  echo 0xa4a5 > $gadget/idProduct
  echo "Mass Storage Gadget" > $gadget/strings/0x409/product
  truncate -s 32M /run/gadget.img
  echo /run/gadget.img > $gadget/functions/mass_storage.0/lun.0/file
  ln -s $gadget/functions/mass_storage.0 $gadget/configs/c.1/
  udc=$(basename /sys/class/udc/*)
  # Not by soft_connect: what was disconnected that way does not answer dummy_hcd when it is connected again (error -71).
  plug_in() { echo "$udc" > $gadget/UDC; }
  pull_out() { echo > $gadget/UDC; }
  plug_in
  ports=$ports${ports:+:}$(port_of "Mass Storage Gadget")
fi
if has tablet; then
  tablet=$(port_of "QEMU USB Tablet")
  ports=$ports${ports:+:}$tablet
fi
echo "$STEPS at $ports: $SECONDS s"
check "the host has no udev" sh -c '! ls /run/udev/control'

{
  cat << END
MIB=$MIB
END
  cat << 'END'
while read -r module; do insmod /usb/$module 2> /dev/null; done < /usb/order
# disk SECTORS: a USB disk of that size.
disk() {
  i=0
  while [ $i -lt 600 ]; do
    for d in /sys/block/sd*; do [ "$(cat $d/size 2> /dev/null)" = $1 ] && echo /dev/${d##*/} && return; done
    sleep 0.3
    i=$((i + 1))
  done
}
END
  ! has stick || cat << 'END'
stick=$(disk 131072)
[ -b "$stick" ] && ok "a stick is there" || { bad "no stick"; dmesg | grep -E 'usb|xhci|scsi|sd ' | tail -40; }
/sbin/mke2fs -q -t ext4 -b 4096 -E lazy_itable_init=1 $stick && mount $stick /mnt && ok "a file system on the stick" || bad "no file system"
dd if=/dev/urandom of=/mnt/data bs=64k count=$((MIB * 16)) 2> /dev/null
echo "SUM $(sha1sum < /mnt/data)"
umount /mnt && ok "written" || bad "not written"
END
  ! has tablet || cat << 'END'
i=0
while [ $i -lt 300 ] && ! grep -q 'QEMU USB Tablet' /proc/bus/input/devices; do sleep 0.3; i=$((i + 1)); done
grep -q 'QEMU USB Tablet' /proc/bus/input/devices && ok "a tablet is there" || { bad "no tablet"; dmesg | grep -E 'usb|xhci|hid' | tail -40; }
for d in /sys/class/input/event*; do ! grep -q "QEMU USB Tablet" $d/device/name || tablet=/dev/input/${d##*/}; done
# struct input_event of 64 bits: time in 16 bytes, type, code, value. One at a time, as nothing here may be buffered.
exec 3< $tablet
while true; do
  set -- $(dd bs=24 count=1 <&3 2> /dev/null | od -An -v -tu2)
  echo "POINTER $9 ${10} ${11}"
done | tee /tmp/pointer &
echo LISTENING
i=0
while [ $i -lt 600 ] && ! grep -q 'POINTER 1 272 0' /tmp/pointer; do sleep 0.3; i=$((i + 1)); done
sleep 5
dmesg > /tmp/log
[ $(grep -c 'Product: QEMU USB Tablet' /tmp/log) = 1 ] && ok "it came once" || bad "it came $(grep -c 'Product: QEMU USB Tablet' /tmp/log) times"
! grep -E 'usb.*(error -|disconnect)' /tmp/log && ok "nothing failed, and it stayed" || bad "it failed, or went"
grep -q 'QEMU USB Tablet' /proc/bus/input/devices && ok "the tablet is still there" || bad "the tablet is gone"
echo TABLET
END
  ! has gadget || cat << 'END'
other=$(disk 65536)
[ -b "$other" ] && ok "another one is there" || { bad "no gadget"; dmesg | grep -E 'usb|xhci|scsi|sd ' | tail -40; }
echo WRITING
dd if=/dev/zero of=$other bs=64k count=512 oflag=direct 2> /dev/null && bad "the writer noticed nothing" || ok "the writer gets an error"
i=0; while [ -e /sys/block/${other#/dev/} ] && [ $i -lt 60 ]; do sleep 0.5; i=$((i + 1)); done
[ ! -e /sys/block/${other#/dev/} ] && ok "it is pulled out" || bad "still there"
echo GONE
again=$(disk 65536)
dd if=/dev/urandom of=/tmp/piece bs=64k count=16 2> /dev/null
dd if=/tmp/piece of=$again bs=64k oflag=direct 2> /dev/null && ok "written again" || bad "not written again"
echo "PIECE $(sha1sum < /tmp/piece)"
END
} > /run/inside
guest_script /run/inside
mkdir -p /run/more/usb
while read -r module; do
  cp "$module" /run/more/usb/
  echo "${module##*/}" >> /run/more/usb/order
done < "$OUT/guest-modules"
strip --strip-debug /run/more/usb/*.ko
(cd /run/more && find usb | cpio -o -H newc --quiet | gzip -1) >> /run/initrd

MEM=192M start_dm -s "8,xhci,$ports"
if has stick; then
  check "the guest is there" wait_for 600 "OK a stick is there"
  echo "-- $SECONDS s"
  check "the host's driver is away" test ! -e /sys/block/sda
  check "the guest writes to the stick" wait_for $((200 + 10 * MIB)) "OK written"
  echo "-- $SECONDS s: $MIB MiB written"
fi
if has tablet; then
  check "the guest has the tablet" wait_for 600 "OK a tablet is there"
  echo "-- $SECONDS s"
  check "and reads it" wait_for 60 LISTENING
  touch "$OUT/move"
  check "x is right" wait_for 100 "POINTER 3 0 12345"
  check "y is right" wait_for 30 "POINTER 3 1 23456"
  check "the left button goes down" wait_for 30 "POINTER 1 272 1"
  check "and up" wait_for 30 "POINTER 1 272 0"
  check "it stays" wait_for 200 "^TABLET"
fi
if has gadget; then
  check "the guest writes to the gadget" wait_for 600 WRITING
  sleep 3
  pull_out
  check "a device that is pulled out is gone for the guest" wait_for 200 GONE
  check "the device model goes on" kill -0 "$dm"
  plug_in
  check "and comes back" wait_for 200 "^PIECE"
fi
wait_dm 120
check "device model ends with status 0" test "$?" = 0
echo "-- $SECONDS s"
guest_results

if has gadget; then
  piece=$(sed -n 's/^PIECE \([0-9a-f]*\).*/\1/p' "$guest_log")
  check "what was written to the gadget is in its file" \
    test "$(head -c 1048576 /run/gadget.img | sha1sum | cut -c1-40)" = "${piece:-none}"
fi
if has tablet; then
  check "the tablet is the host's again" wait_file "/sys/bus/usb/devices/$tablet/driver"
fi
if has stick; then
  sum=$(sed -n 's/^SUM \([0-9a-f]*\).*/\1/p' "$guest_log")
  # The stick is the host's again, with its driver.
  wait_file "/sys/bus/usb/devices/$stick/driver" && wait_file /sys/block/sda
  for _ in $(seq 50); do disk=$(grep -lx 131072 /sys/block/sd*/size 2> /dev/null) && break; sleep 0.2; done
  disk=${disk%/size}
  mkdir -p /run/mnt
  check "the stick is the host's again" mount -o ro "/dev/${disk##*/}" /run/mnt
  check "what the guest wrote is on the stick" test "$(sha1sum < /run/mnt/data | cut -c1-40)" = "${sum:-none}"
  umount /run/mnt
fi
echo "-- $SECONDS s"
finish
