/**
 * Stands in for the package `koffi` in the bundle: takes its native module straight from the platform package. The
 * package's own loader finds the same file, but looks at the platform, the ABI and several folders first, which costs
 * 5 to 9 ms of every start. Node's way to a file whose place is known is 1 ms longer than the file's own loading.
 */
const file = '@koromix/koffi-linux-x64/linux_x64/koffi.node';
// Where Node would look, in its order: a checkout's packages or our own, then those that stand beside us.
const places = [`${__dirname}/../node_modules/${file}`, `${__dirname}/../../${file}`];

function loadNative() {
  for (const place of places) {
    try {
      const module = { exports: {} };
      process.dlopen(module, place);
      return module.exports;
    } catch {
      // not there, or not for this machine
    }
  }
  try {
    return require(/* elsewhere */ '@koromix/koffi-linux-x64/linux_x64/koffi.node');
  } catch {
    return require(/* musl, a build from source */ 'koffi').default;
  }
}

module.exports = loadNative();
