'use strict';
// Arguments for the fuzzer: some of everything that JavaScript can pass, and enough of what is right to come further.

/** What a hostile getter throws; whoever calls must get this very object. */
const OWN = new Error('thrown by the argument itself');
const boom = () => {
  throw OWN;
};

function generator(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const below = (n) => Math.floor(next() * n);
  const pick = (list) => list[below(list.length)];
  return { next, below, pick };
}

/** `binding`: the addon, if its own functions are to be called. */
function values(seed, quantaria, pool, binding) {
  const { next, below, pick } = generator(seed);
  const DTYPES = [
    'float32',
    'float16',
    'bfloat16',
    'float8_e4m3',
    'float8_e5m2',
    'int8',
    'uint8',
    'int16',
    'int32',
    'int64',
    'bool',
  ];
  const COMPUTES = ['auto', 'float32', 'bfloat16', 'int8'];
  const dim = () => pick([1, 1, 2, 3, 4, 5, 17, 64]);
  const goodShape = () => Array.from({ length: below(4) }, dim);
  const number = () =>
    pick([
      0,
      -0,
      1,
      2,
      3,
      -1,
      0.5,
      16,
      64,
      255,
      Number.NaN,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
      2 ** 53,
      2 ** 53 - 1,
      -(2 ** 53),
      1e308,
      5e-324,
      2 ** 45,
    ]);
  // No absolute path and no `..`: a text may become the name of an output file, and this may run as root.
  const text = () =>
    pick([
      '',
      'cpu',
      'cuda:0',
      process.env.QUANTARIA_TEST_DEVICE || 'cpu',
      'cuda:4294967296',
      'nowhere',
      'no/where',
      '\0',
      'a\0b',
      '\ud800',
      '__proto__',
      'constructor',
      'é'.repeat(300),
      ...DTYPES,
    ]);
  const typed = () => {
    const Type = pick([
      Float32Array,
      Float64Array,
      Uint8Array,
      Int8Array,
      Uint16Array,
      Int16Array,
      Int32Array,
      BigInt64Array,
      BigUint64Array,
      Uint32Array,
      Uint8ClampedArray,
    ]);
    return new Type(pick([0, 1, 2, 4, 64]));
  };
  const detached = () => {
    const array = new Float32Array(4);
    structuredClone(array.buffer, { transfer: [array.buffer] });
    return array;
  };
  const cyclic = () => {
    const list = [1];
    list.push(list);
    return list;
  };
  const strange = () =>
    pick([
      () => undefined,
      () => null,
      () => true,
      () => 10n ** 30n,
      () => Symbol('s'),
      () => Symbol.iterator,
      () => () => 1,
      () => class Foo {},
      () => new Date(Number.NaN),
      () => /x/g,
      () => new Map([[1, 2]]),
      () => new Error('not yours'),
      () => Promise.resolve(1),
      () => Object.create(null),
      () => Object.create(quantaria.Tensor.prototype),
      () => Object.create(quantaria.QuantizedTensor.prototype),
      () => ({ __proto__: { dtype: 'int8', shape: [2], length: 3 } }),
      () => JSON.parse('{"__proto__":{"kind":"nf4"},"constructor":1}'),
      () => ({ length: 2 ** 53 - 1 }),
      () => ({ length: -1 }),
      () => ({ length: 2, 0: 1, 1: 2, [Symbol.iterator]: boom }),
      () => ({ toString: boom, valueOf: boom, [Symbol.toPrimitive]: boom }),
      () => new Array(2 ** 32 - 1),
      () => Object.assign(new Array(3), { 0: 1, 2: 3 }),
      () => Object.assign([1, 2], { [Symbol.iterator]: boom, map: boom, every: boom }),
      () => new Array(17).fill(1),
      cyclic,
      () => new Proxy({}, { get: boom, has: boom, ownKeys: boom, getPrototypeOf: boom }),
      () => new Proxy([1, 2], { get: boom }),
      () => new Proxy({}, { get: () => pick([1, 'nf4', undefined, [2]]) }),
      () => Object.defineProperty([0, 2], 0, { get: boom }),
      () => Object.defineProperty({}, 'kind', { get: boom, enumerable: true }),
      () => Object.defineProperty({}, 'length', { get: boom }),
      () => detached(),
      () => detached().buffer,
      () => new ArrayBuffer(8),
      () => new SharedArrayBuffer(8),
      () => new Float32Array(new SharedArrayBuffer(16)),
      () => new DataView(new ArrayBuffer(8)),
      () => new ArrayBuffer(8, { maxByteLength: 64 }),
      () => quantaria.Tensor,
      () => globalThis,
    ])();
  const scheme = () => {
    const group = pick([1, 16, 32, 128, 2 ** 53 - 1]);
    const right = pick([
      {
        kind: 'int',
        bits: pick([2, 3, 4, 5, 6, 8, 16]),
        symmetric: next() < 0.5,
        granularity: pick(['tensor', 'row', 'column']),
      },
      {
        kind: 'int',
        bits: pick([2, 4, 8]),
        symmetric: true,
        range: pick(['full', 'restricted']),
        granularity: 'group',
        groupSize: group,
      },
      { kind: 'int', bits: 4, symmetric: false, search: 'mse', granularity: 'row', scaleDtype: 'float16' },
      { kind: pick(['nf4', 'fp4', 'e3m0']), blockSize: group, doubleQuant: next() < 0.5 },
      { kind: 'dynamic8', blockSize: group },
      { kind: 'fp8', format: pick(['e4m3', 'e5m2']), granularity: pick(['row', 'tensor']) },
      {
        kind: 'mx',
        element: pick(['e4m3', 'e5m2', 'e3m2', 'e2m3', 'e2m1', 'int8']),
        preScale: next() < 0.3,
        rounding: pick(['even', 'floor']),
      },
      { kind: 'llm.int8' },
      { kind: 'spqr', bits: 3, groupSize: 16, outlierThreshold: 1 },
    ]);
    if (next() < 0.3) right[pick([...Object.keys(right), 'extra', '__proto__', 'groupSize'])] = any();
    return right;
  };
  const tensor = () => {
    const shape = next() < 0.7 ? [dim(), dim()] : goodShape();
    const dtype = pick(['float32', 'float32', ...DTYPES]);
    const count = shape.reduce((a, b) => a * b, 1);
    const range = dtype === 'bool' ? 2 : 100;
    const data = Array.from({ length: count }, () =>
      next() < 0.01 && dtype === 'float32' ? Number.NaN : below(range),
    );
    const made = quantaria.Tensor.from(data, shape, { dtype });
    if (next() < 0.1) made.dispose();
    return made;
  };
  /** Infinities and NaN among them. */
  const floats = (shape) => {
    const count = shape.reduce((a, b) => a * b, 1);
    const data = Array.from({ length: count }, () => (next() < 0.01 ? number() : next() - 0.5));
    return quantaria.Tensor.from(data, shape, { dtype: pick(['float32', 'float16', 'bfloat16']) });
  };
  const int32 = (data, shape) => quantaria.Tensor.from(Int32Array.from(data), shape);
  const weightScheme = () =>
    pick([
      { kind: 'int', bits: 4, symmetric: next() < 0.5, granularity: 'group', groupSize: 16 },
      { kind: 'int', bits: pick([3, 8, 16]), symmetric: true, granularity: pick(['row', 'column']) },
      { kind: 'nf4', blockSize: pick([5, 16]), doubleQuant: next() < 0.5 },
      { kind: 'mx', element: 'e2m3' },
      { kind: 'llm.int8', threshold: pick([0, 0.3, 6]) },
    ]);
  const quantizedOf = (shape, scheme) => {
    const count = shape.reduce((a, b) => a * b, 1);
    return quantaria.quantize(quantaria.Tensor.from(new Float32Array(count).fill(next()), shape), scheme);
  };
  const stacks = (count, hidden, inter) => ({
    fc1: floats([count, hidden, 2 * inter]),
    fc2: floats([count, inter, hidden]),
  });
  const experts = (count, hidden, inter) => {
    const matrix = (shape) => (next() < 0.5 ? floats(shape) : quantizedOf(shape, weightScheme()));
    return Array.from({ length: count }, () => ({
      gate: matrix([inter, hidden]),
      up: matrix([inter, hidden]),
      down: matrix([hidden, inter]),
    }));
  };
  /** Now and then an index is out of range. */
  const routing = (tokens, count) => {
    const topK = 1 + below(count);
    if (next() < 0.5) return quantaria.moe.route(floats([tokens, count]), { topK, order: 'softmax-topk' });
    const any = () => (next() < 0.01 ? pick([-1, count, -(2 ** 31), 2 ** 31 - 1]) : below(count));
    return {
      indices: int32(Array.from({ length: tokens * topK }, any), [tokens, topK]),
      weights: quantaria.Tensor.from(new Float32Array(tokens * topK).fill(next()), [tokens, topK]),
      counts: quantaria.Tensor.zeros([count], { dtype: 'int32' }),
    };
  };
  const pooled = (type) => {
    const list = pool.filter((item) => item instanceof type);
    return list.length > 0 ? pick(list) : undefined;
  };
  const quantized = () => {
    const made = pooled(quantaria.QuantizedTensor);
    return (
      made ??
      quantaria.quantize(quantaria.Tensor.from(new Float32Array(12), [3, 4]), { kind: 'nf4', blockSize: 4 })
    );
  };
  const parts = () => {
    const q = quantized();
    let made;
    try {
      made = { ...q.parts };
    } catch {
      return {}; // disposed, or only its prototype is right
    }
    if (next() < 0.7) made[pick([...Object.keys(made), 'groupIndex', 'x'])] = next() < 0.6 ? tensor() : any();
    return made;
  };
  const entries = () =>
    Array.from({ length: below(3) }, () => ({
      name: text(),
      dtype: pick(['F32', 'BF16', 'I64', 'F4', 'X', any()]),
      shape: next() < 0.7 ? goodShape() : any(),
    }));
  function any(depth = 0) {
    const kind = below(depth > 2 ? 5 : 12);
    if (kind < 2) return number();
    if (kind < 3) return text();
    if (kind < 5) return strange();
    if (kind < 6) return typed();
    if (kind < 7) return goodShape();
    if (kind < 8) return pool.length > 0 ? pick(pool) : tensor();
    if (kind < 9) return pick([scheme, parts, entries])();
    if (kind < 10) return Array.from({ length: below(4) }, () => any(depth + 1));
    if (kind < 11)
      return {
        [text()]: any(depth + 1),
        dtype: pick([any(depth + 1), pick(DTYPES)]),
        device: pick(['cpu', process.env.QUANTARIA_TEST_DEVICE || 'cpu']),
      };
    return tensor();
  }
  /** What each function would take; the fuzzer replaces some of it. */
  const right = {
    'Tensor.from': () => [
      pick([typed, goodShape])(),
      next() < 0.5 ? [4] : goodShape(),
      { dtype: pick(DTYPES) },
    ],
    'Tensor.zeros': () => [goodShape(), { dtype: pick(DTYPES) }],
    'Tensor#reshape': () => [[-1, dim()]],
    'Tensor#cast': () => [pick(DTYPES)],
    'Tensor#slice': () => [below(2), below(3), below(5)],
    quantize: () => [tensor(), scheme()],
    dequantize: () => [quantized(), { dtype: pick(DTYPES) }],
    matmul: () => {
      const depth = dim();
      return [floats([dim(), depth]), floats([depth, dim()]), { outDtype: pick(DTYPES) }];
    },
    linear: () => {
      const weight = next() < 0.8 ? quantized() : floats([dim(), dim()]);
      const [out, depth] = weight.shape ?? [1, 1];
      const options = { compute: pick(COMPUTES) };
      if (next() < 0.3) options.bias = floats([out]);
      if (next() < 0.3) options.outDtype = pick(DTYPES);
      return [floats([...goodShape(), depth]), weight, options];
    },
    Hessian: () => [4],
    'Hessian#update': () => [quantaria.Tensor.from(new Float32Array(12).fill(next()), [3, 4])],
    'gptq.quantize': () => {
      const hessian = pooled(quantaria.Hessian) ?? new quantaria.Hessian(4);
      return [tensor(), hessian, { scheme: scheme(), actOrder: next() < 0.5, damping: next() }];
    },
    'QuantizedTensor.fromParts': () => {
      const q = quantized();
      return [q.scheme, [...q.shape], parts()];
    },
    'moe.route': () => [floats([dim(), 4]), { topK: 1 + below(4), order: 'topk-softmax' }],
    'moe.experts': () => {
      const [tokens, count, hidden, inter] = [dim(), 1 + below(3), dim(), dim()];
      const layer = next() < 0.3 ? stacks(count, hidden, inter) : experts(count, hidden, inter);
      return [floats([tokens, hidden]), layer, routing(tokens, count), { compute: pick(COMPUTES) }];
    },
    'moe.groupedMatmul': () => {
      const [depth, counts] = [dim(), Array.from({ length: below(4) }, () => below(5))];
      const rows = counts.reduce((a, b) => a + b, next() < 0.1 ? 1 : 0);
      return [floats([rows, depth]), floats([counts.length, depth, dim()]), int32(counts, [counts.length])];
    },
    'moe.groupedToSequential': () => [quantaria.Tensor.zeros([2, 3, 8]), quantaria.Tensor.zeros([2, 4, 3])],
    'moe.sequentialToGrouped': () => [[{ gate: tensor(), up: tensor(), down: tensor() }]],
    SafetensorsWriter: () => [`f${below(5)}.safetensors`, entries()],
    'SafetensorsWriter#write': () => [text(), tensor()],
    openCheckpoint: () => [pick(['.', 'f1.safetensors', text()])],
    setThreads: () => [pick([1, 2, 3, number()])],
    'Checkpoint#read': () => ['w', { range: [below(3), below(3)] }],
  };
  const handle = (made) => quantaria.Tensor.native(made, 'made');
  /** A weight and activations of its width, as the addon takes them. */
  const operands = () => {
    const [out, depth] = [dim(), dim()];
    const scheme = weightScheme();
    const w = quantaria.Tensor.from(new Float32Array(out * depth).fill(next()), [out, depth]);
    const stored = Object.entries(quantaria.quantize(w, scheme).stored);
    const form = Object.fromEntries(stored.map(([name, part]) => [name, handle(part)]));
    return { x: handle(floats([dim(), depth])), w: handle(w), weight: [scheme, form, [out, depth]] };
  };
  const rawWeight = (q) => q.forProducts();
  const handles = (members) =>
    Object.fromEntries(
      Object.entries(members).map(([name, member]) => [
        name,
        member instanceof quantaria.QuantizedTensor ? rawWeight(member) : handle(member),
      ]),
    );
  const operand = () => pick(['float32', 'bfloat16', 'int8']);
  const rawRight = {
    weight: () => operands().weight,
    arrange: () => [binding.weight(...operands().weight), next() < 0.5],
    linear: () => {
      const { x, weight } = operands();
      return [x, binding.weight(...weight), null, pick(DTYPES), operand()];
    },
    llmInt8Linear: () => {
      const [out, depth] = [dim(), dim()];
      const weight = rawWeight(quantizedOf([out, depth], { kind: 'llm.int8' }));
      const bias = next() < 0.3 ? handle(floats([out])) : null;
      return [handle(floats([dim(), depth])), weight, bias, pick(DTYPES), pick([0, 0.3, 6])];
    },
    weightDispose: () => [binding.weight(...operands().weight)],
    moeExperts: () => {
      const [tokens, count, hidden, inter] = [dim(), 1 + below(3), dim(), dim()];
      const layer =
        next() < 0.3
          ? handles(stacks(count, hidden, inter))
          : experts(count, hidden, inter).map((expert) => handles(expert));
      const topK = 1 + below(count);
      const made = quantaria.moe.route(floats([tokens, count]), { topK, order: 'softmax-topk' });
      const tensors = handles(made);
      // Slots that nobody sorted, among those that are.
      const slots = () => Array.from({ length: tokens * topK }, () => pick([0, 1, -1, 2 ** 31 - 1]));
      if (next() < 0.2) tensors.order = handle(int32(slots(), [tokens * topK]));
      if (next() < 0.2)
        tensors.offsets = handle(int32(Array.from({ length: count + 1 }, number), [count + 1]));
      return [handle(floats([tokens, hidden])), layer, tensors, operand()];
    },
    moeGroupedMatmul: () => [...right['moe.groupedMatmul']().map(handle), operand()],
    matmul: () => {
      const { x, w } = operands();
      return [x, w, true, null, pick(DTYPES), operand()];
    },
  };
  const args = (name) => {
    const list = (binding ? rawRight : right)[name]?.() ?? [];
    const count = Math.max(list.length, below(4));
    return Array.from({ length: count }, (_, i) => (i < list.length && next() < 0.7 ? list[i] : any()));
  };
  return { args, any, next, below, pick };
}

module.exports = { OWN, values };
