#!/bin/bash
# A Debian i386 guest under acrnctl and acrnd: asked to stop it powers itself off, in S3 it is "suspended", stays asleep when it
# is asked to stop and wakes by acrnd's timer; a disk that blkrescan brings is seen by the guest; reset.
#   DEBIAN_I386=DIR   where examples/debian-i386/fetch.sh has put the kernel, .cache/debian-i386
debian=${DEBIAN_I386:-$(cd "$(dirname "$0")/../.." && pwd)/.cache/debian-i386}
if [ -z "${MANAGERS_INSIDE:-}" ] && ! "$(dirname "$0")/../../examples/debian-i386/fetch.sh" "$debian" > /dev/null; then
  echo "skipped: the Debian i386 packages could not be had"
  exit 0
fi
. "$(dirname "$0")/lib.sh"

INITRAMFS=$scratch/base.gz "$repo/examples/debian-i386/mkinitramfs.sh" "$debian" button evdev virtio_pci virtio_blk > /dev/null
mkdir "$scratch/test"
cat > "$scratch/test/test" << 'GUEST'
export PATH=/sbin:/bin
for e in /dev/input/event*; do
  [ -e $e ] && (dd if=$e of=/dev/null bs=16 count=1 2> /dev/null && echo guest-powers-off && poweroff -f) &
done
echo deep > /sys/power/mem_sleep
echo guest-is-up
while :; do read -r line && eval "$line" || sleep 1; done
GUEST
(cd "$scratch/test" && echo test | cpio -o -H newc --quiet | gzip -1) | cat "$scratch/base.gz" - > /run/t/initrd
head -c 8M /dev/urandom > disk.img
mkfifo typed
exec 7<> typed
cat > vm.sh << SCRIPT
#!/bin/bash
acrn-dm --hypervisor soft -m 256M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 3,virtio-blk,nodisk --shutdown-timeout 60 -k $debian/vmlinuz -r /run/t/initrd -B "console=ttyS0 panic=-1 quiet mitigations=off noisapnp cryptomgr.notests no_console_suspend run=sh@/test" deb
SCRIPT
: > deb.out
# up NUMBER: until the guest's shell is there for the so-manieth time.
up() { within 300 eval '[ "$(grep -ac guest-is-up deb.out)" = '"$1"' ]'; }
# guest WORDS ANSWER: typed at its shell.
guest() {
  echo "$1" >&7
  within 60 grep -aq "^$2" deb.out
}

check "acrnctl add" said 'deb added' acrnctl add vm.sh
[ "$failures" = 0 ] || finish
acrnctl start deb < typed >> deb.out 2>&1 &
check "acrnctl start" within 60 is deb started
check "Debian is up" up 1
[ "$failures" = 0 ] || { tail -20 deb.out; finish; }
check "blkrescan" eval '[ -z "$(acrnctl blkrescan deb 3,/run/t/disk.img)" ]'
check "the guest sees the disk" guest 'sleep 2; echo size-$(cat /sys/block/vda/size)' size-16384

echo "-- S3"
echo 'echo mem > /sys/power/state; echo woken-$?' >&7
check "a guest in S3 is suspended" within 60 is deb suspended
check "stop of a guest in S3 is heard" acrnctl stop deb
sleep 5
check "and does not wake it, nor end it" is deb suspended
check "DM_RESUME wakes it" eval '[ "$(message deb.monitor 5 00020000)" = 0 ]'
check "it is awake" within 60 grep -aq '^woken-0' deb.out
check "started" within 5 is deb started
echo 'echo mem > /sys/power/state; echo again-$?' >&7
within 60 is deb suspended
acrnd -d 0 > acrnd.out 2>&1 &
acrnd=$!
check "acrnd, when it starts, resumes what is suspended" within 60 grep -aq '^again-0' deb.out
echo 'echo mem > /sys/power/state; echo third-$?' >&7
within 60 is deb suspended
check "a timer of acrnd" eval '[ "$(message acrnd 9 "$(printf "%-32s" "$(printf deb | od -An -tx1 | tr -d " \n")" | tr " " 0)0300000000000000")" = 0 ]'
check "wakes it" within 60 grep -aq '^third-0' deb.out

echo "-- reset, and the end"
was=$(pid_of deb)
acrnctl reset deb < typed >> deb.out 2>&1 &
check "reset: the guest powers itself off" within 60 grep -aq guest-powers-off deb.out
check "and is started again" up 2
check "as another process" test "$(pid_of deb)" != "$was"
kill -TERM "$acrnd"
check "SIGTERM of acrnd stops the guest" within 60 is_gone deb
check "by its button" eval '[ "$(grep -ac "guest entered ACPI S5" deb.out)" = 2 ]'
check "stopped" is deb stopped
cp deb.out "$scratch"
finish
