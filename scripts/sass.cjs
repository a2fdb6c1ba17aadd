'use strict';
// Reads the machine code of an A100 (sm_80) out of a cubin, as far as it takes to say how many instructions a step of a kernel's hot
// loop issues. An instruction has 16 bytes: its operation in the lowest twelve bits, then the predicate that it waits for.

const INSTRUCTION_BYTES = 16;
const ALWAYS = 7n; // the predicate that is true
const OPERATIONS = new Map([
  [0x23c, 'mma'], // HMMA
  [0x237, 'mma'], // IMMA
  [0x223, 'fma'], // FFMA, with a constant or an immediate value as well
  [0x423, 'fma'],
  [0x823, 'fma'],
  [0xa23, 'fma'],
  [0xfae, 'copy'], // LDGSTS
  [0x388, 'store'], // STS
  [0x947, 'branch'], // BRA
  [0x944, 'call'], // CALL.REL, by which ptxas also leaves loops
  [0x94d, 'exit'], // EXIT
  [0x950, 'exit'], // RET
]);

/** Name and place of each section of an ELF64 file. */
function sections(cubin) {
  const table = Number(cubin.readBigUInt64LE(40));
  const all = Array.from({ length: cubin.readUInt16LE(60) }, (_, i) => {
    const header = table + i * 64;
    return {
      name: cubin.readUInt32LE(header),
      start: Number(cubin.readBigUInt64LE(header + 24)),
      size: Number(cubin.readBigUInt64LE(header + 32)),
    };
  });
  const { start: names } = all[cubin.readUInt16LE(62)];
  return all.map(({ name, start, size }) => {
    const from = names + name;
    return { name: cubin.toString('latin1', from, cubin.indexOf(0, from)), start, size };
  });
}

function decode(cubin, { start, size }) {
  return Array.from({ length: size / INSTRUCTION_BYTES }, (_, i) => {
    const low = cubin.readBigUInt64LE(start + i * INSTRUCTION_BYTES);
    const high = cubin.readBigUInt64LE(start + i * INSTRUCTION_BYTES + 8);
    const kind = OPERATIONS.get(Number(low & 0xfffn)) ?? 'other';
    const instruction = { kind, always: ((low >> 12n) & 15n) === ALWAYS && ((high >> 23n) & 15n) === ALWAYS };
    if (kind === 'copy') instruction.kind = ((high >> 9n) & 7n) >= 6n ? 'copy16' : 'copy4';
    if (kind === 'branch' || kind === 'call') {
      // From the next instruction on, in bytes, over both halves; its two lowest bits: taken only by warps whose threads are apart.
      const offset = BigInt.asIntN(50, (low >> 32n) | ((high & 0x3ffffn) << 32n));
      instruction.target = i + 1 + Number(offset >> 2n) / (INSTRUCTION_BYTES / 4);
      if (offset & 3n) instruction.always = false;
    }
    return instruction;
  });
}
/** Stretches that a branch leads back over and that hold something of what kernels are there for; the most, and the shortest, first. */
function loops(code) {
  const found = [];
  for (const [last, { target }] of code.entries()) {
    if (target === undefined || target < 0 || target > last) continue;
    const body = code.slice(target, last + 1);
    const count = (wanted) => body.filter(({ kind }) => kind === wanted).length;
    const work = count('mma') * 1000 + count('fma');
    if (work > 0) found.push({ work, first: target, last, body });
  }
  return found.sort((a, b) => b.work - a.work || a.body.length - b.body.length);
}

/**
 * What a warp issues for a step of a loop, { instructions, mma }, or null if no way leads through it: on the shortest way that comes by
 * all tensor-core instructions (where there are none: by all multiply-adds) and 16-byte copies that one way can, and if such a way does,
 * by one at least of the smaller copies, or else of the stores to shared memory, and of the multiply-adds. For a product with a quantized
 * weight that is a step in which one group ends. Loops inside it count once; ptxas may have unrolled it, so that it holds several steps.
 */
function stepOf({ first, last, body }) {
  const has = (wanted) => body.some(({ kind }) => kind === wanted);
  const full = has('mma') ? 'mma' : 'fma';
  const brought = has('copy4') ? 'copy4' : has('copy16') ? 'copy16' : 'store';
  const once = [brought, 'fma'].filter((kind) => kind !== full && has(kind));
  const all = 2 ** once.length;
  const better = (a, b) =>
    !b ||
    a.work > b.work ||
    (a.work === b.work && (a.wide > b.wide || (a.wide === b.wide && a.instructions < b.instructions)));
  // To each instruction, for each set of kinds that have been met: the best way.
  const ways = body.map(() => Array(all).fill(null));
  const ends = Array(all).fill(null);
  ways[0][0] = { work: 0, wide: 0, instructions: 0 };
  const keep = (of, set, way) => {
    if (better(way, of[set])) of[set] = way;
  };
  for (const [i, { kind, always, target }] of body.entries())
    for (const [set, way] of ways[i].entries()) {
      if (!way) continue;
      const met = once.includes(kind) ? set | (1 << once.indexOf(kind)) : set;
      const next = {
        work: way.work + (kind === full ? 1 : 0),
        wide: way.wide + (kind === 'copy16' ? 1 : 0),
        instructions: way.instructions + 1,
      };
      const leaves = kind === 'exit' || kind === 'branch';
      if (target === first) keep(ends, met, next);
      if (target > first + i && target <= last) keep(ways[target - first], met, next);
      if (!(leaves && always) && i + 1 < body.length) keep(ways[i + 1], met, next);
    }
  const least = (a, b) => !b || a.work > b.work || (a.work === b.work && a.wide > b.wide);
  const best = ends.reduceRight((a, b) => (b && least(b, a) ? b : a));
  return best && { instructions: best.instructions, mma: full === 'mma' ? best.work : 0 };
}

/** The step of each kernel's hot loop, by mangled name; of kernels without one nothing. */
function stepsOf(cubin) {
  const found = new Map();
  for (const section of sections(cubin)) {
    if (!section.name.startsWith('.text.')) continue;
    // Where ptxas has laid a part of a loop elsewhere, the stretch to that part's branch back is none.
    const step = loops(decode(cubin, section)).map(stepOf).find(Boolean);
    if (step) found.set(section.name.slice('.text.'.length), step);
  }
  return found;
}

module.exports = { stepsOf };
