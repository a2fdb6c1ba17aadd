'use strict';
// What cases are made of: shapes, schemes, values, and weights that come from memory each time.

const { normals } = require('../../api/normals.cjs');

const ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096];
const ARIA = { hidden: 2560, inter: 1664, experts: 64, topK: 6 };
/** Of weights, [out, in]. */
const SHAPES = [
  [3328, 2560],
  [2560, 1664],
  [4096, 4096],
  [11008, 4096],
  [4096, 11008],
  [8192, 8192],
];
/** Even at four bits, 117 MB are read a launch: what starting and ending one costs is lost in that. */
const LARGE_SHAPE = [28672, 8192];

const group = (bits, groupSize, more = {}) => ({
  kind: 'int',
  bits,
  symmetric: true,
  range: 'full',
  granularity: 'group',
  groupSize,
  ...more,
});
/** What products of quantized weights are timed with, and 16 bits beside them. */
const WEIGHTS = {
  dense: null,
  'int4 g128': group(4, 128),
  'int4 g128 zero points': group(4, 128, { symmetric: false, range: undefined }),
  'int4 g32': group(4, 32),
  'int3 g128': group(3, 128),
  'int2 g32': group(2, 32),
  'int8 g128': group(8, 128),
  'nf4 b64': { kind: 'nf4', blockSize: 64 },
  'nf4 b64 double': { kind: 'nf4', blockSize: 64, doubleQuant: true },
  'fp8 e4m3': { kind: 'fp8', format: 'e4m3', granularity: 'row' },
  mxfp4: { kind: 'mx', element: 'e2m1' },
  'llm.int8': { kind: 'llm.int8' },
};

/** Between two uses of one weight this much is read, more than twice any second-level cache here: from memory each time. */
const ROTATED_BYTES = 128 * 2 ** 20;
const MOST_ROTATED_ROWS = 64;

const countOf = (shape) => shape.reduce((a, b) => a * b);

/** Values like a trained weight's; large ones repeat a stretch, as making them all anew would take longer than timing. */
function filled(count, deviation = 0.02, seed = 1) {
  const stretch = normals(Math.min(count, 65521), deviation, seed);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += stretch.length) values.set(stretch.subarray(0, count - i), i);
  return values;
}

/** Activations and the like. */
const tensorOf = (q, device, shape, dtype, deviation = 1, seed = 2) =>
  q.Tensor.from(filled(countOf(shape), deviation, seed), shape, { dtype, device });

/** How often something of this size has to lie there for each use of one of them to read memory. */
const copiesFor = (bytes) => Math.ceil(ROTATED_BYTES / bytes);

/** The weights of the last case: those of the next one, if it differs in its rows alone. */
let held = { key: '', weights: [] };

function heldWeights(key, make) {
  if (held.key !== key) {
    for (const weight of held.weights) weight.dispose();
    held = { key: '', weights: [] };
    held = { key, weights: make() };
  }
  return held.weights;
}

/** Gives back what the last case left for the next. */
const releaseHeld = () => heldWeights('', () => []);

module.exports = {
  ARIA,
  LARGE_SHAPE,
  MOST_ROTATED_ROWS,
  ROWS,
  SHAPES,
  WEIGHTS,
  copiesFor,
  countOf,
  filled,
  heldWeights,
  releaseHeld,
  tensorOf,
};
