/**
 * Stands in for the package `koffi` in the bundle: takes its native module straight from the platform package. The
 * package's own loader finds the same file, but looks at the platform, the ABI and several folders first, which costs
 * 5 to 9 ms of every start.
 */
let native;
try {
  native = require('@koromix/koffi-linux-x64/linux_x64/koffi.node');
} catch {
  native = require(/* musl, a build from source */ 'koffi').default;
}
module.exports = native;
