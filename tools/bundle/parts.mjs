/**
 * One program in several files: what every start of a VM takes is one script, so that it is one read, one check and one
 * code cache; everything else (a device, an engine, a report) is a file of its own in dist/parts/, which costs nothing
 * until it is asked for.
 *
 * esbuild splits the program into ES modules ("chunks"): one for each import(), and one for each set of modules that
 * several of them share. Here each becomes a function that returns its exports:
 *
 *   import{a as b}from"./chunk-X.js";  ->  const{a:b}=$part("chunk-X");      (names are constants: nothing is exported
 *   import("./disk-Y.js")              ->  $later("disk-Y")                   before it has its value, and none changes)
 *   export{c as d};                    ->  return{d:c}
 *
 * What is put in is padded to the length of what it replaces, so that the columns of esbuild's source maps stay right.
 */
import { basename } from 'node:path';

/** Default, namespace and named bindings of a static import, at the beginning of a chunk or between two of its modules. */
const STATIC_IMPORT = /(?<=^|[;}\n])import(?: ?([\w$]+)?,? ?(?:\* ?as ([\w$]+)|\{([^{}"]*)\})? ?from ?)?"([^"]+)";/g;
const EXPORTS = /export\{([^}]*)\};\s*$/;
const DEFAULT_EXPORT = /export default ([^;]+);\s*$/;
const DYNAMIC_IMPORT = /\bimport\("([^"]+)"\)/g;

/** Expression with the property `url`, for import.meta: only some starts ask for it, and it takes a millisecond. */
export const urlOfThisFile = '{get url(){return require("node:url").pathToFileURL(__filename).href}}';

const isChunk = (path) => path.startsWith('./') && path.endsWith('.js');
const nameOf = (path) => basename(path, '.js');

/** `a as b,c` as the properties of an object (`a:b,c`), or turned round for exports (`b:a,c`). */
const properties = (list, turned) =>
  list
    .split(',')
    .filter((entry) => entry !== '')
    .map((entry) => entry.split(' as '))
    .map(([from, to]) => (to === undefined ? from : turned ? `${to}:${from}` : `${from}:${to}`))
    .join(',');

const padded = (text, original) => {
  if (text.length > original.length) throw new Error(`build: "${text}" is longer than "${original}"`);
  return text.padEnd(original.length);
};

function staticImport(original, whole, all, named, path) {
  const source = isChunk(path) ? `$part("${nameOf(path)}")` : `$rq("${path}")`;
  const bindings = [];
  // What stays outside is CommonJS or Node's own: its default is what it exports.
  for (const name of [whole, all]) if (name !== undefined) bindings.push(`${name}=${source}`);
  if (named !== undefined) bindings.push(`{${properties(named)}}=${source}`);
  return padded(bindings.length === 0 ? `${source};` : `const ${bindings.join(',')};`, original);
}

/** The body of a function of $part, $later, $rq (require) and __bundle that returns the exports of a chunk. */
function functionBody(code, name) {
  // esbuild's short names do not get that far; if they ever do, it is seen here.
  if (/\$(part|later|rq)\b/.test(code)) throw new Error(`build: ${name} uses a name of the loader`);
  const body = code
    .replace(STATIC_IMPORT, staticImport)
    .replace(DYNAMIC_IMPORT, (original, path) =>
      padded(isChunk(path) ? `$later("${nameOf(path)}")` : `$later(0,"${path}")`, original),
    )
    .replace(EXPORTS, (_, list) => `return{${properties(list, true)}};`)
    .replace(DEFAULT_EXPORT, 'return{default:$1};');
  const left = /(?:^|[;}\n] *)(?:import|export)[\s{*"].{0,60}/.exec(body);
  if (left !== null) throw new Error(`build: ${name} has a statement that is not understood: ${left[0]}`);
  return body.trimEnd();
}

/**
 * @param output of esbuild: `outputFiles`, `metafile`
 * @param usual source paths: what most starts import()
 * @returns the script `bundle`, its source map, and `parts`, each with `name`, `text`, `map`
 */
export function assemble(output, usual) {
  const outputs = new Map(Object.entries(output.metafile.outputs).map(([path, about]) => [nameOf(path), about]));
  const files = new Map(output.outputFiles.map((file) => [basename(file.path), file]));
  const chunkOf = (source) => {
    for (const [name, about] of outputs) if (about.entryPoint === source) return name;
    throw new Error(`build: nothing imports ${source}`);
  };
  const together = new Set();
  const take = (name) => {
    if (together.has(name)) return;
    together.add(name);
    const { imports } = outputs.get(name);
    for (const { path, kind, external } of imports) {
      if (kind === 'import-statement' && external !== true) take(nameOf(path));
    }
  };
  for (const source of usual) take(chunkOf(source));

  const sections = [];
  let text = '{';
  let line = 1; // behind the loader's
  const parts = [];
  for (const file of output.outputFiles) {
    if (!file.path.endsWith('.js')) continue;
    const name = nameOf(file.path);
    const body = functionBody(file.text, name);
    const map = JSON.parse(files.get(`${basename(file.path)}.map`).text);
    if (together.has(name)) {
      sections.push({ offset: { line: line + 1, column: 0 }, map });
      const piece = `\n"${name}":()=>{\n${body}\n},`;
      text += piece;
      line += piece.split('\n').length - 1;
    } else {
      const head = 'module.exports=($part,$later,$rq,__bundle)=>{"use strict";const require=$rq;\n';
      const mapHere = { version: 3, sections: [{ offset: { line: 1, column: 0 }, map }] };
      parts.push({ name, text: `${head}${body}\n};\n`, map: JSON.stringify(mapHere) });
    }
  }
  const run = [
    'const $done={},$rq=require',
    'const $load=(name)=>($chunks[name]??require("./parts/"+name+".cjs"))($part,$later,$rq,__bundle)',
    'const $part=(name)=>($done[name]??=$load(name))',
    // A package of others, or a part; as with import(), what fails fails later.
    'const $later=async(name,outside)=>outside===undefined?$part(name):{default:require(outside)}',
    // By its name, or undefined for all of the bundle: for whoever makes the code cache.
    'return(name)=>name===undefined?void Object.keys($chunks).forEach($part):$part(name)',
  ];
  const head = `(function(require,module,__filename,__dirname){"use strict";const __bundle=${urlOfThisFile};`;
  return {
    bundle: `${head}const $chunks=\n${text}\n};${run.join(';')}})`,
    map: JSON.stringify({ version: 3, sections }),
    parts,
  };
}
