'use strict';
// A mixture-of-experts layer of Aria's shape: 64 experts, 6 a token, 2560 -> 1664, int4 weights; random routing.

const { normals, passes } = require('./measure.cjs');

const [HIDDEN, INTER, EXPERTS, TOP_K] = [2560, 1664, 64, 6];
const SCHEME = {
  kind: 'int',
  bits: 4,
  symmetric: true,
  range: 'full',
  granularity: 'group',
  groupSize: 32,
  scaleDtype: 'float16', // as the peer's
};
/** Of one expert. */
const SCALES = (3 * HIDDEN * INTER) / SCHEME.groupSize;
/** Different routings in turn: few tokens then do not find their experts in the cache. */
const ROUTINGS = { 1: 16, 16: 4, 256: 1, 1024: 1 };

let experts = null;
/** All cases share them: they are half a gigabyte. */
function sharedExperts(q) {
  if (experts) return experts;
  const wide = q.Tensor.from(normals(INTER * HIDDEN), [INTER, HIDDEN], { dtype: 'bfloat16' });
  const tall = wide.reshape([HIDDEN, INTER]);
  experts = Array.from({ length: EXPERTS }, () => ({
    gate: q.quantize(wide, SCHEME),
    up: q.quantize(wide, SCHEME),
    down: q.quantize(tall, SCHEME),
  }));
  return experts;
}

const layer = (m) => ({
  name: 'moe.experts int4',
  compute: 'bfloat16',
  shape: [HIDDEN, INTER],
  m,
  needs: ['moe.experts', 'moe.route'],
  async setup(q) {
    const all = sharedExperts(q);
    const x = q.Tensor.from(normals(m * HIDDEN, 1, 3), [m, HIDDEN], { dtype: 'bfloat16' });
    const routings = Array.from({ length: ROUTINGS[m] }, (_, i) =>
      q.moe.route(q.Tensor.from(normals(m * EXPERTS, 1, 5 + i), [m, EXPERTS]), {
        topK: TOP_K,
        order: 'topk-softmax',
      }),
    );
    let hit = 0;
    for (const { counts } of routings) hit += (await counts.read()).filter((count) => count > 0).length;
    // Scales of 16 bits are stored as float32, but read as they are.
    const bytes = ['gate', 'up', 'down'].reduce((sum, part) => sum + all[0][part].byteLength, 0) - SCALES * 2;
    const turns = m === 1 ? passes(routings.length, m) : 1;
    return {
      units: turns * routings.length,
      work: { bytes: (bytes * hit) / routings.length, operations: 2 * m * TOP_K * 3 * HIDDEN * INTER },
      async run() {
        for (let turn = 0; turn < turns; turn++)
          for (const routing of routings) q.moe.experts(x, all, routing).dispose();
        await q.synchronize();
      },
      dispose() {
        for (const tensor of [x, ...routings.flatMap((routing) => Object.values(routing))]) tensor.dispose();
      },
    };
  },
});

/** What the router itself takes. */
const route = {
  name: 'moe.route',
  compute: 'float32',
  shape: [EXPERTS, TOP_K],
  m: 4096,
  needs: ['moe.route'],
  async setup(q) {
    const logits = q.Tensor.from(normals(4096 * EXPERTS, 1, 5), [4096, EXPERTS]);
    return {
      units: 1,
      work: { bytes: logits.byteLength, operations: 0 },
      async run() {
        const routing = q.moe.route(logits, { topK: TOP_K, order: 'topk-softmax' });
        for (const tensor of Object.values(routing)) tensor.dispose();
        await q.synchronize();
      },
      dispose: () => logits.dispose(),
    };
  },
};

module.exports = [...Object.keys(ROUTINGS).map((m) => layer(Number(m))), route];
