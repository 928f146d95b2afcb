# rig.sh: the way into the rig (../shared/tools/hsmrig, or $HSMRIG), sourced first by the scripts beside it.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
rig=${HSMRIG:-$repo/../shared/tools/hsmrig}
rig_build=${HSMRIG_BUILD:-/var/tmp/hsmrig}
export DM=${DM:-node $repo/dist/acrn-dm.js}

# is_outside: $RIG is the rig's own word.
is_outside() { [ -z "${RIG:-}" ]; }

# need_rig: ends the script where there is none.
need_rig() {
  [ -d "$rig" ] || { echo "skipped: no rig in $rig"; exit 0; }
}

# enter_rig VARIABLE...: this script once more, inside, with these of the environment. Its status.
enter_rig() { RIG_PASS="DM $*" "$rig/run.sh" "$(readlink -f "$0")"; }

# bundle_suite TEST NAME: a file of tests as a program, without vitest, whose start takes minutes in the rig. It is $bundle,
# inside, too.
bundle_suite() {
  bundle=$repo/node_modules/.rig/$2.mjs
  ! is_outside || "$repo/node_modules/.bin/esbuild" "$repo/$1" --bundle --platform=node --format=esm --external:koffi \
    --external:v86 --alias:vitest="$repo/test/support/small-vitest.mjs" --outfile="$bundle" --log-level=warning
}
