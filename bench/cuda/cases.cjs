'use strict';
// Families x shapes on one CUDA device. A case has a `setup(q, device, { rotate })`, which gives
//   work      the least that it has to read and write, and the operations that it has to do, whoever does it; `products` of
//             tensor cores among them: [{ rows: of each group, n, k }]
//   run()     queues it `units` times; waits: true if it waits for the device as well, so that no graph can hold it
//   passes    for predictions: what kernels of these names do of it, or more than it, all their launches together; `steps` are
//             those that have to come one after the other. Without it all of it is the largest launch's, or, if `spread`, every
//             launch's in equal parts.

const { expertCases } = require('./cases/experts.cjs');
const { gptqCases } = require('./cases/gptq.cjs');
const { memoryBoundCases } = require('./cases/memory_bound.cjs');
const { productCases } = require('./cases/products.cjs');
const { releaseHeld } = require('./cases/tensors.cjs');

const allCases = () => [...productCases(), ...expertCases(), ...gptqCases(), ...memoryBoundCases()];

const labelOf = ({ family, dtype, shape, m }) =>
  `${family} ${dtype} ${shape.join('x')}${m > 0 ? ` m=${m}` : ''}`;

module.exports = { allCases, labelOf, releaseHeld };
