import { hadamard, Tensor } from '../../../lib';
import { type CaseFacts, type Check, mapValues, type Runner, type Runners, valuesOf } from '../harness';

const last = (tensor: Tensor): number => tensor.shape.at(-1) as number;

function diagonal(values: ArrayLike<number>): Tensor {
  const n = values.length;
  const data = new Float32Array(n * n);
  for (let i = 0; i < n; i++) data[i * n + i] = values[i] as number;
  return Tensor.from(data, [n, n]);
}

/** The matrix itself: transforming the unit vectors gives its columns. */
const matrixOf = (n: number): Tensor =>
  hadamard(diagonal(new Float32Array(n).fill(1)), { scale: 1 }).transpose();

/** The library's base matrix is the peer's, so that outputs can agree at all. */
async function checkBase(check: Check): Promise<void> {
  if (!check.has('h_k')) return;
  await check.also('h_k', matrixOf(check.param<number>('K')), await check.values('h_k'), { mode: 'exact' });
}

const apply: Runner = {
  unfit({ params, tensors }: CaseFacts): string | null {
    if (params.transpose) return 'the transposed base matrix';
    return tensors.x?.dtype === 'F32' ? null : `${tensors.x?.dtype} input`;
  },
  async run(check) {
    await checkBase(check);
    await check.output('y', hadamard(await check.input('x')));
  },
};

/** Any Hadamard matrix of the order will do. For 12, Dao-AILab's is another than QuaRot's, which is the one here. */
const matrix: Runner = {
  async run(check) {
    const n = check.param<number>('n');
    const h = await valuesOf(matrixOf(n));
    const products = mapValues(h, (_, at) => {
      let sum = 0;
      for (let k = 0; k < n; k++) {
        sum += (h.data[Math.floor(at / n) * n + k] as number) * (h.data[(at % n) * n + k] as number);
      }
      return sum;
    });
    const identity = mapValues(products, (_, at) => (at % (n + 1) === 0 ? n : 0));
    await check.also('h hᵀ', products, identity, { mode: 'exact' });
    const ones = mapValues(h, () => 1);
    await check.also('|h|', mapValues(h, Math.abs), ones, { mode: 'exact' });
    if (n !== 12 || check.facts.peer === 'spcl/QuaRot') {
      await check.also('h', h, await check.values('h'), { mode: 'exact' });
    }
    check.omit('held to the property of a Hadamard matrix above, and to equality but for one', 'h');
  },
};

const padded: Runner = {
  async run(check) {
    const x = await valuesOf(await check.input('x'));
    const [rows, n] = x.shape as [number, number];
    const size = 2 ** Math.ceil(Math.log2(n));
    const data = new Float32Array(rows * size);
    for (let r = 0; r < rows; r++) data.set(Array.from(x.data).slice(r * n, (r + 1) * n), r * size);
    const y = hadamard(Tensor.from(data, [rows, size]), { scale: check.param<number>('scale') });
    await check.output('y', y.slice(1, 0, n));
  },
};

const randomised: Runner = {
  async run(check) {
    await checkBase(check);
    await check.output('q', hadamard(diagonal((await check.values('signs')).data)));
  },
};

const fuseWeight: Runner = {
  async run(check) {
    await checkBase(check);
    const w = await check.input('w');
    const rows = check.param<string>('side') === 'input' ? w : w.transpose();
    const block = check.param<number>('had_dim');
    const fused = hadamard(rows.reshape([-1, block === -1 ? last(rows) : block])).reshape([...rows.shape]);
    await check.output('w_out', rows === w ? fused : fused.transpose());
  },
};

export const rotation: Runners = {
  hadamard_apply: apply,
  hadamard_matrix: matrix,
  hadamard_pow2_padded: padded,
  random_hadamard: randomised,
  hadamard_fuse_weight: fuseWeight,
};
