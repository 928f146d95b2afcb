#!/bin/bash
# Every operation of Cloud Hypervisor's OpenAPI document, by a client that a generator of others made from it: what it sends and
# what it is answered is checked against the document on its way. The VMs are demo guests on the embedded hypervisor; no root.
#   CH_OPENAPI=FILE  vmm/src/api/openapi/cloud-hypervisor.yaml of Cloud Hypervisor
#   CH_CLIENT=DIR    where npm puts the generator, and the client is made (default .cache/ch-client)
set -uo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
dir=${CH_CLIENT:-$repo/.cache/ch-client}

[ -r "${CH_OPENAPI:-}" ] || { echo "skipped: CH_OPENAPI names no OpenAPI document of Cloud Hypervisor"; exit 0; }
[ -d "$repo/node_modules/v86" ] || { echo "skipped: the optional package v86 is not installed"; exit 0; }
mkdir -p "$dir"
if [ ! -x "$dir/node_modules/.bin/openapi-ts" ]; then
  echo '{ "private": true, "type": "module" }' > "$dir/package.json"
  (cd "$dir" && timeout 200 npm install --silent --no-audit --no-fund --ignore-scripts @hey-api/openapi-ts@0.95.0 typescript@5.9.3) \
    > "$dir/npm.log" 2>&1 || { tail -3 "$dir/npm.log"; echo "skipped: npm could not bring the generator"; exit 0; }
fi
cat > "$dir/openapi-ts.config.mjs" << CONFIG
export default {
  input: '$(readlink -f "$CH_OPENAPI")',
  output: 'client',
  plugins: ['@hey-api/client-fetch', 'valibot', { name: '@hey-api/sdk', validator: true }],
};
CONFIG
rm -rf "$dir/client"
(cd "$dir" && timeout 120 npx openapi-ts) > "$dir/generator.log" 2>&1 || { tail -5 "$dir/generator.log"; exit 1; }
cp "$repo/test/managers/ch-client.mjs" "$dir/main.mjs"
ln -sfn "$repo/node_modules/valibot" "$dir/node_modules/valibot"
"$repo/node_modules/.bin/esbuild" "$dir/main.mjs" --bundle --platform=node --format=esm --log-level=warning --outfile="$dir/bundle.mjs" || exit 1
timeout 200 node "$dir/bundle.mjs" "$repo"
