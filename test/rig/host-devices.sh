#!/bin/bash
# Devices of the host that a guest gets a part of, through Linux's own drivers on both sides: GPIO lines of gpio-sim, a
# keyboard made by uinput, sockets of vhost-vsock. Debian's kernel leaves out gpio-sim and the guest's GPIO driver: they
# are compiled from its source.

# Outside.
. "$(dirname "${BASH_SOURCE[0]}")/rig.sh"
if is_outside; then
  build=$rig_build
  [ ! -d "$rig" ] || "$rig/build.sh" > /dev/null || exit 125
  if [ -d "$rig" ] && [ ! -e "$build/gpio/gpio-virtio.ko" ]; then
    mkdir -p "$build/gpio"
    tar -xJf /usr/src/linux-source-6.1.tar.xz -C "$build/gpio" --no-anchored --transform 's,.*/,,' \
      drivers/gpio/gpio-sim.c drivers/gpio/gpio-virtio.c drivers/gpio/gpiolib.h kernel/irq/irq_sim.c || exit 125
    # The kernel exports another way to the same handler.
    sed -i 's/handle_simple_irq(irq_to_desc(irqnum))/generic_handle_irq(irqnum)/' "$build/gpio/irq_sim.c"
    printf 'obj-m := gpio-virtio.o gpio-simulator.o\ngpio-simulator-y := gpio-sim.o irq_sim.o\n' > "$build/gpio/Kbuild"
    make -s -C "/usr/src/linux-headers-$(cat "$build/ready")" M="$build/gpio" modules > /dev/null 2>&1 || exit 125
  fi
fi
. "$(dirname "$0")/lib.sh"

guest_script "$repo/test/guest/inside/host-devices.sh"
(
  mkdir -p /run/more/lib
  cp "$HSMRIG_BUILD/gpio/gpio-virtio.ko" /run/more/lib/
  strip --strip-debug /run/more/lib/gpio-virtio.ko
  cd /run/more || exit
  for file in $(command -v socat) $(ldd "$(command -v socat)" | grep -o '/[^ ]*'); do cp --parents -L "$file" .; done
  mkdir -p bin && mv usr/bin/socat bin/ 2> /dev/null
  find . -type f | cpio -o -H newc --quiet | gzip -1
) >> /run/initrd

# A chip of 8 lines: 2 has no name, 3 and 5 have.
host_modules configfs
insmod "$HSMRIG_BUILD/gpio/gpio-simulator.ko"
mount -t configfs none /sys/kernel/config 2> /dev/null
sim=/sys/kernel/config/gpio-sim/rig
mkdir -p $sim/bank/line3 $sim/bank/line5
echo 8 > $sim/bank/num_lines
echo reset > $sim/bank/line3/name
echo button > $sim/bank/line5/name
echo 1 > $sim/live
chip=$(cat $sim/bank/chip_name)
lines=/sys/devices/platform/$(cat $sim/dev_name)/$chip
level() { cat "$lines/sim_gpio$1/value"; }
pull() { echo "pull-$2" > "$lines/sim_gpio$1/pull"; }

host_modules uinput evdev
mkfifo /run/keyboard.in
python3 "$repo/test/rig/keyboard.py" < /run/keyboard.in > /run/keyboard.log 2>&1 & keyboard=$!
exec 6> /run/keyboard.in
sleep 2
event=$(basename "$(dirname "$(dirname "$(grep -l 'rig keyboard' /sys/class/input/event*/device/name)")")")

host_modules vhost_vsock
head -c 3000000 /dev/urandom > /run/data
socat -u VSOCK-LISTEN:5000 CREATE:/run/sent & sender=$!
socat -u OPEN:/run/data VSOCK-LISTEN:5001 & receiver=$!

start_dm -s "3,virtio-gpio,@$chip{2=detect:reset=shutdown:button},transport=modern" \
  -s "4,virtio-input,/dev/input/$event,number,7" -s 5,vhost-vsock,cid=7
if wait_for 120 "STAGE high"; then
  check "the guest drives line 3 high" test "$(level 3)" = 1
  check "nobody else gets it" sh -c "! $DM -k $HSMRIG_BUILD/vmlinuz --cpu_affinity 0 -s 0:0,hostbridge -s 3,virtio-gpio,@$chip{3} vm2 > /run/second.log 2>&1"
  check "and is told who has it" grep -q 'line 3: in use by acrn_dm' /run/second.log
  pull 5 up
  wait_for 30 "STAGE low"
  check "the guest drives line 3 low" test "$(level 3)" = 0
  pull 5 down
  wait_for 60 "STAGE rising"
  for edge in 1 2 3; do
    pull 5 up
    check "rising edge $edge" wait_for 20 "SEEN rising $edge"
    pull 5 down
  done
  pull 2 up
  wait_for 60 "STAGE both"
  for edge in 1 3; do
    pull 5 up
    check "edge $edge" wait_for 20 "SEEN both $edge"
    pull 5 down
    check "edge $((edge + 1))" wait_for 20 "SEEN both $((edge + 1))"
  done
  pull 2 down
  wait_for 60 "STAGE keys"
  echo key >&6
  wait_for 120 "OK received"
fi
wait_dm 60
check "the device model ends with 0" test $? = 0
guest_results
check "the light" grep -q 'event 17 1 1' /run/keyboard.log
check "what the guest sent" grep -aq "OK sent $(md5sum < /run/sent)" "$guest_log"
check "what the guest received" grep -aq "OK received $(md5sum < /run/data)" "$guest_log"
kill $keyboard $sender $receiver 2> /dev/null
finish
