# Linux in the guest: GPIO lines, a keyboard, sockets. The other side of ../../rig/host-devices.sh.
insmod /lib/gpio-virtio.ko
cd /sys/class/gpio
chip=$(echo gpiochip*)
base=$(cat $chip/base)
[ "$(cat $chip/ngpio)" = 3 ] && ok "3 lines" || bad "$(cat $chip/ngpio) lines"
# Lines with names show up under them.
for i in 0 1 2; do echo $((base + i)) > export; done
line0=detect line1=shutdown line2=button
[ -d $line0 ] && [ -d $line1 ] && [ -d $line2 ] && ok "names" || bad "names: $(echo *)"
[ "$(cat $line1/direction)" = in ] && ok "direction at first" || bad "direction $(cat $line1/direction)"
echo high > $line1/direction && [ "$(cat $line1/direction)$(cat $line1/value)" = out1 ] && ok "output" || bad "output"
echo "STAGE high"; until [ "$(cat $line2/value)" = 1 ]; do sleep 0.2; done
echo 0 > $line1/value && ok "the host's level" || bad "value"
echo "STAGE low"; until [ "$(cat $line2/value)" = 0 ]; do sleep 0.2; done

count() { awk '/virtio-gpio/ { n += $2 } END { print n + 0 }' /proc/interrupts; }
# tell WHAT LEVEL: of every interrupt, until line 0 has the level.
tell() {
  echo "STAGE $1"
  seen=0
  until [ "$(cat $line0/value)" = $2 ]; do
    n=$(($(count) - before))
    [ $n = $seen ] || { seen=$n; echo "SEEN $1 $seen"; }
    sleep 0.2
  done
  seen=$(($(count) - before))
}
echo rising > $line2/edge && ok "edges" || bad "edges"
before=$(count)
tell rising 1
[ $seen = 3 ] && ok "3 rising edges" || bad "$seen interrupts of 3 edges"
echo both > $line2/edge
before=$(count)
tell both 0
[ $seen = 4 ] && ok "4 edges" || bad "$seen interrupts of 4 edges"
echo none > $line2/edge
before=$(count)
echo out > $line2/direction && ok "an ordinary line again" || bad "still an interrupt"
[ $(count) = $before ] || bad "interrupts without interrupt"

event=$(grep -l "rig keyboard" /sys/class/input/event*/device/name | cut -d/ -f5)
cd /sys/class/input/$event/device
[ "$(cat name)/$(cat uniq)/$(cat id/vendor)" = "rig keyboard/number,7/1234" ] && ok "$(cat name)" ||
  bad "$(cat name)/$(cat uniq)/$(cat id/vendor)"
[ "$(cat capabilities/key)/$(cat capabilities/led)" = 40000000/2 ] && ok "one key, one light" || bad "$(cat capabilities/*)"
dd if=/dev/input/$event bs=24 count=4 of=/tmp/events 2> /dev/null &
sleep 1; echo "STAGE keys"; wait $!
keys=$(od -An -v -tu2 -w24 /tmp/events | awk '{ printf "%s,%s,%s ", $9, $10, $11 }')
[ "$keys" = "1,30,1 0,0,0 1,30,0 0,0,0 " ] && ok "a key" || bad "events $keys"
# Caps lock: EV_LED, LED_CAPSL, on, and the end of the report.
zero='\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
printf "$zero"'\021\0\1\0\1\0\0\0'"$zero"'\0\0\0\0\0\0\0\0' > /dev/input/$event && ok "its light" || bad "light"

head -c 3000000 /dev/urandom > /tmp/data
echo "OK sent $(md5sum < /tmp/data)"
echo "STAGE socket"
socat -u OPEN:/tmp/data VSOCK-CONNECT:2:5000 || bad "sending"
socat -u VSOCK-CONNECT:2:5001 CREATE:/tmp/got || bad "receiving"
echo "OK received $(md5sum < /tmp/got)"
