#!/bin/bash
# life_mngr 3.x from ACRN's sources, unmodified, at both ends of the line that --pm_by_vuart is: as a guest has it, beside the
# VM instead of in it, and as the Service VM has it. What would power a machine off is a script of ours.
. "$(dirname "$0")/lib.sh"

# life_mngr HOME CONFIG-LINE...: one with /etc/life_mngr, /var/lib/life_mngr, /var/log and a poweroff of its own; in the
# background.
life_mngr() {
  local home=$1
  shift
  mkdir -p "$home"/{etc,lib,log,bin}
  printf '%s\n' "$@" > "$home/etc/life_mngr.conf"
  mkdir -p /etc/life_mngr /var/lib/life_mngr
  printf '#!/bin/sh\necho off >> %s/poweroff\n' "$home" > "$home/bin/poweroff"
  chmod +x "$home/bin/poweroff"
  unshare -m sh -c "mount --bind $home/etc /etc/life_mngr && mount --bind $home/lib /var/lib/life_mngr &&
    mount --bind $home/log /var/log && PATH=$home/bin:\$PATH exec /run/bin/life_mngr" > "$home/out" 2>&1 &
  manager=$!
}
# ask HOME WORDS: at the control socket of a life_mngr; prints the answer.
ask() {
  python3 - "/proc/$(pgrep -x life_mngr -f | head -1)/root" "$@" << 'PYTHON'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[2] + '/lib/monitor.sock')
s.send(sys.argv[3].encode())
print(s.recv(64).rstrip(b'\0').decode())
PYTHON
}

echo "-- a guest with life_mngr, and acrnctl stop"
launch_script vm1.sh vm1 demo=echo '--shutdown-timeout 20' '--pm_notify_channel uart' '--pm_by_vuart pty,/run/t/line' \
  '--logger_setting console,level=5'
acrnctl add vm1.sh > add.out
mkfifo typed
# The stand-in for the guest's power-off: the demo guest powers off at this word.
acrnctl start vm1 < typed > vm1.out 2>&1 &
exec 7> typed
check "the VM runs" within 20 is vm1 started
check "the line is there" test -c /run/t/line
life_mngr /run/t/guest VM_TYPE=user_vm VM_NAME=vm1 DEV_NAME=tty:/run/t/line
check "sync: is answered" within 15 grep -q 'Lifecycle manager: connected' guest/log/life_mngr.log
check "acrnctl stop" acrnctl stop vm1
check "the guest's life_mngr powers it off" within 20 grep -q off guest/poweroff
echo exit >&7
check "the VM is gone" within 10 is_gone vm1
check "status 0" within 3 grep -qx 'status 0' vm1.status
wait "$manager"

echo "-- S5 of the whole machine, asked by a guest"
# The life_mngr of release 3 listens on no TCP port: the bridge that the integrators have.
socat PTY,link=/run/t/service-line,rawer,wait-slave TCP-LISTEN:8192,reuseaddr &
within 20 test -e /run/t/service-line
life_mngr /run/t/service VM_TYPE=service_vm VM_NAME=service_vm DEV_NAME=tty:/run/t/service-line ALLOW_TRIGGER_S5=/run/t/service-line
service=$manager
within 20 grep -q 'Open tty device' service/log/life_mngr.log
within 20 grep -q ':2000 ' /proc/net/tcp
launch_script vm2.sh vm2 demo=echo '--pm_notify_channel uart,allow_trigger_s5' '--pm_by_vuart pty,/run/t/line2'
acrnctl add vm2.sh > add.out
mkfifo typed2
acrnctl start vm2 < typed2 > vm2.out 2>&1 &
exec 8> typed2
check "the VM runs" within 20 is vm2 started
life_mngr /run/t/guest2 VM_TYPE=user_vm VM_NAME=vm2 DEV_NAME=tty:/run/t/line2
check "sync: is answered by the Service VM" within 20 grep -q 'Lifecycle manager: connected' guest2/log/life_mngr.log
check "a request for S5 is heard" said ack_req_sys_shutdown ask /run/t/guest2 req_sys_shutdown
check "the guest is told to power off" within 30 grep -q off guest2/poweroff
check "its answer is heard" within 30 grep -q 'Receive poweroff ACK' service/log/life_mngr.log
check "the Service VM waits for acrn-dm to go" within 30 grep -q 'Running VM num:1' service/log/life_mngr.log
check "and does not power off before" fails test -e service/poweroff
echo exit >&8
check "the VM is gone" within 10 is_gone vm2
check "then the machine is powered off" within 40 grep -q off service/poweroff
check "it did not give up" fails grep -q 'failed to power off' service/log/life_mngr.log
finish
