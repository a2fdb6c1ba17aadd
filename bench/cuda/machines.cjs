'use strict';
// What GPUs can do at most, from their data sheets (dense, no sparsity), and what a multiprocessor holds.

/** `schedulers` issue an instruction of a warp each at every clock. */
const MULTIPROCESSOR = { registers: 65536, threads: 2048, blocks: 32, schedulers: 4 };

const machines = {
  'A100-80GB': {
    match: /A100/,
    bytesPerSecond: 2039e9,
    operationsPerSecond: { float16: 312e12, int8: 624e12, float32: 19.5e12 },
    multiprocessors: 108,
    clocksPerSecond: 1.41e9,
    l2Bytes: 40 * 2 ** 20,
    multiprocessor: { ...MULTIPROCESSOR, sharedBytes: 164 * 1024 },
  },
  // mma.sync does not reach the peak of its tensor cores, which takes wgmma: the share is not known before a measurement.
  'H100-SXM': {
    match: /H100/,
    bytesPerSecond: 3350e9,
    operationsPerSecond: { float16: 989e12, int8: 1979e12, float32: 67e12 },
    multiprocessors: 132,
    clocksPerSecond: 1.83e9,
    l2Bytes: 50 * 2 ** 20,
    multiprocessor: { ...MULTIPROCESSOR, sharedBytes: 228 * 1024 },
  },
};

/** The machine of a device's name, or null: then there is no roofline to hold it against. */
const machineOf = (name) => Object.values(machines).find(({ match }) => match.test(name)) ?? null;

/** The least seconds that work can take: its bytes at the memory's rate, or its operations at theirs. */
function floorSeconds(work, machine) {
  const memory = work.bytes / machine.bytesPerSecond;
  const compute = work.operations / machine.operationsPerSecond[work.rate];
  return Math.max(memory, compute);
}

module.exports = { floorSeconds, machineOf, machines };
