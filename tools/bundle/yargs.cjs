/** A file of its own beside the bundle, loaded when the help is asked for: a tenth of everything, and no start needs it. */
module.exports = require('yargs').default;
