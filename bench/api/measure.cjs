'use strict';
// Times asynchronous work with the `benchmark` package.

const Benchmark = require('benchmark');
const { normals } = require('./normals.cjs');

/** At least this much memory lies between two uses of one weight, so that products of few rows read memory, not cache. */
const ROTATION_BYTES = 160 * 2 ** 20;

/** How many equal weights are taken in turn: enough for `ROTATION_BYTES` with few rows, a few otherwise. */
const rotation = (weightBytes, rows) =>
  rows <= 16 ? Math.max(2, Math.ceil(ROTATION_BYTES / weightBytes)) : 2;

/** How often products of few rows go over so many weights before they wait: a token is some hundred products, queued ahead. */
const passes = (weights, rows) => (rows <= 16 ? Math.ceil(64 / weights) : 1);

/**
 * Seconds of one unit of work.
 * @param run does `units` units and resolves when they are done
 */
async function time(run, units, budget) {
  await run(); // memory is touched, weights are packed
  const stats = await new Promise((resolve, reject) => {
    new Benchmark({
      defer: true,
      maxTime: budget,
      minTime: Math.min(0.05, budget / 5),
      minSamples: 5,
      fn: (deferred) => {
        run().then(() => deferred.resolve(), reject);
      },
    })
      .on('complete', (event) => resolve(event.target.stats))
      .on('error', (event) => reject(event.target.error))
      .run({ async: true });
  });
  const seconds = stats.sample.map((sample) => sample / units).sort((a, b) => a - b);
  return {
    median: seconds[Math.floor(seconds.length / 2)],
    best: seconds[0],
    repetitions: seconds.length,
  };
}

module.exports = { normals, passes, rotation, time };
