#!/bin/bash
# The API's own OpenAPI document, as a process without a VM gives it out, under `redocly lint` with its recommended rules: no
# error, no warning. No root; npm brings the linter.
set -uo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
linter=@redocly/cli@2.77.0
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true

timeout 180 npx --yes "$linter" --version > /dev/null 2>&1 || { echo "skipped: npm could not bring $linter"; exit 0; }
scratch=$(mktemp -d)
trap 'kill "$dm" 2> /dev/null; rm -rf "$scratch"' EXIT
node "$repo/dist/acrn-dm.js" --api-socket "$scratch/api.sock" 2> "$scratch/dm.log" &
dm=$!
for _ in {1..100}; do [ ! -S "$scratch/api.sock" ] || break; sleep 0.1; done
node -e '
  const { writeFileSync } = require("node:fs");
  const [socketPath, file] = process.argv.slice(1);
  require("node:http").get({ socketPath, path: "/v1/openapi.json" }, async (response) => {
    const text = (await response.toArray()).join("");
    if (response.statusCode !== 200) throw new Error(text);
    writeFileSync(file, text);
  });' "$scratch/api.sock" "$scratch/openapi.json" || { cat "$scratch/dm.log"; exit 1; }
# Where there is no configuration its recommended rules hold.
cd "$scratch" || exit 1
timeout 120 npx --yes "$linter" lint --format=json openapi.json > lint.json 2> lint.log
node -e '
  const { totals, problems } = JSON.parse(require("node:fs").readFileSync("lint.json", "utf8"));
  const paths = Object.keys(require("./openapi.json").paths).length;
  for (const { ruleId, message, location } of problems) console.log(`${ruleId}: ${message} ${location?.[0]?.pointer ?? ""}`);
  console.log(`openapi-lint.sh: ${paths} paths, ${totals.errors} errors, ${totals.warnings} warnings, ${totals.ignored} ignored`);
  process.exit(paths > 30 && totals.errors + totals.warnings + totals.ignored === 0 ? 0 : 1);' || { cat lint.log; exit 1; }
