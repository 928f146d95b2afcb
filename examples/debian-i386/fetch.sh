#!/bin/bash
# fetch.sh [DIR]: gets a stock Debian i386 kernel and a static busybox into DIR (default: .cache/debian-i386 in the
# repository). Needs a Debian or Ubuntu host with its usual package sources, no root, about 60 MB.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../../.cache/debian-i386}
die() {
  echo "fetch.sh: $1" >&2
  exit "${2:-69}"
}
if [ -e "$dir/vmlinuz" ] && [ -e "$dir/busybox" ] && [ -e "$dir/modules" ]; then exit 0; fi
for tool in apt-get apt-cache dpkg-deb; do
  command -v $tool > /dev/null || die "there is no $tool: it takes a Debian or Ubuntu host, or DIR with what another one fetched"
done
mkdir -p "$dir" 2> /dev/null && [ -w "$dir" ] || die "$dir cannot be made or written: give a folder, or set DEBIAN_I386 for run.sh" 73
dir=$(cd "$dir" && pwd)

# A private package database: the host's own architecture, lists and cache stay as they are.
apt=$dir/apt
mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial "$dir"/packages
: > "$apt/status"
options=(
  -o APT::Architecture=i386 -o APT::Architectures::=i386
  -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
  -o Debug::NoLocking=1 -o APT::Get::List-Cleanup=0 -o Acquire::Languages=none -o APT::Sandbox::User=
)
echo "fetching package lists"
# One source that is out of reach (a mirror in the middle of a sync, a third party) need not matter.
apt-get "${options[@]}" update -qq || echo "fetch.sh: going on with the package sources that answered" >&2
kernel=$(apt-cache "${options[@]}" depends linux-image-686 | sed -n 's/.*Depends: \(linux-image-6\.1[^ ]*-686\)$/\1/p' | head -1)
[ -n "$kernel" ] || die "these package sources have no linux-image-6.1*-686"
echo "fetching $kernel and busybox-static"
(cd "$dir/packages" && apt-get "${options[@]}" download -qq "$kernel" busybox-static)

for package in "$dir"/packages/*.deb; do dpkg-deb -x "$package" "$dir/root"; done
cp "$dir"/root/boot/vmlinuz-* "$dir/vmlinuz"
cp "$dir/root/bin/busybox" "$dir/busybox"
rm -rf "$dir/modules"
mv "$dir"/root/lib/modules "$dir/modules"
rm -rf "$dir/root" "$dir/packages" "$apt"
ls -l "$dir/vmlinuz" "$dir/busybox"
