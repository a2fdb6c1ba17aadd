import { QuantariaError } from '../errors';
import { type NativeTensor, type NativeWeight, native } from '../native';
import { QuantizedTensor } from '../quantized';
import { checkOptions, show, Tensor } from '../tensor';
import { checkTensor } from './checks';
import { type Compute, checkCompute } from './linear';
import type { GroupedExperts, SequentialExpert } from './moe';
import { type Routing, withRouting } from './moe_route';

/** One routed expert as three quantized weights `[out, in]`. */
export interface QuantizedExpert {
  /** `[inter, hidden]` */
  gate: QuantizedTensor;
  /** `[inter, hidden]` */
  up: QuantizedTensor;
  /** `[hidden, inter]` */
  down: QuantizedTensor;
}

export interface ExpertsOptions {
  /**
   * What products run in, as for `linear`; default `auto`. Weights of LLM.int8 are multiplied by their dequantized values
   * here, without outlier columns, and refuse `int8`, which quantizes what lies between the products too
   */
  compute?: Compute;
}

const FACTOR_DTYPES = ['float32', 'float16', 'bfloat16'] as const;
const PROJECTIONS = ['gate', 'up', 'down'] as const;

type Matrix = Tensor | QuantizedTensor;

/**
 * Runs of rows, each times its expert's matrix.
 * @param x `[rows, K]`, float32, float16 or bfloat16, the rows of expert 0 first
 * @param w `[E, K, N]`
 * @param counts int32 `[E]`, rows of each expert; that they add up is found out on the queue (`ERR_ARGUMENT`)
 * @returns `[rows, N]` of x's dtype
 * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_ARGUMENT`
 */
export function groupedMatmul(x: Tensor, w: Tensor, counts: Tensor): Tensor {
  const rows = checkTensor('x', x, FACTOR_DTYPES, 2);
  const weights = checkTensor('w', w, FACTOR_DTYPES, 3);
  const groups = checkTensor('counts', counts, ['int32'], 1);
  if (x.shape[1] !== w.shape[1] || counts.shape[0] !== w.shape[0]) {
    throw new QuantariaError(
      'ERR_SHAPE',
      `x [${x.shape}], w [${w.shape}], counts [${counts.shape}] came, expected [rows, K], [E, K, N], [E]`,
    );
  }
  return Tensor.wrap(native.moeGroupedMatmul(rows, weights, groups, products('auto', x, [w])));
}

/**
 * The routed experts of a layer: `y[t] = sum_k weight[t, k] * down(silu(gate x[t]) * (up x[t]))` over t's experts, in the
 * order of k. Each expert's weights are read once for all its tokens (for some hundred at a time); what lies between
 * the products is float32, on CUDA x's dtype where products are in 16 bits. There weights whose columns name their groups
 * are kept in the order of groups too, as in `linear`.
 * @param x `[T, hidden]`, float32, float16 or bfloat16
 * @param experts stacked as for a grouped GEMM, or one by one, dense or quantized
 * @param routing of `moe.route`, or indices, weights and counts from elsewhere
 * @returns `[T, hidden]` of x's dtype
 * @throws QuantariaError `ERR_SHAPE`, `ERR_DTYPE`, `ERR_ARGUMENT`, `ERR_UNSUPPORTED`
 */
export function experts(
  x: Tensor,
  experts: GroupedExperts | SequentialExpert[] | QuantizedExpert[],
  routing: Routing,
  opts?: ExpertsOptions,
): Tensor {
  const rows = checkTensor('x', x, FACTOR_DTYPES, 2);
  const compute = checkCompute(checkOptions(opts).compute);
  const { count, hidden, matrices, handles } = Array.isArray(experts)
    ? checkList(experts)
    : checkStacks(experts);
  if (hidden !== null && x.shape[1] !== hidden) {
    throw new QuantariaError('ERR_SHAPE', `x: [${x.shape}] came, the experts take [T, ${hidden}]`);
  }
  const run = products(compute, x, matrices);
  return withRouting(routing, x.shape[0] as number, count, (tensors) =>
    Tensor.wrap(native.moeExperts(rows, handles(), tensors, run)),
  );
}

interface Checked {
  count: number;
  /** Unknown of no experts. */
  hidden: number | null;
  matrices: Matrix[];
  handles: () => NativeExperts;
}
/** @internal Stacks; or gate, up and down of one expert after the other. */
export type NativeExperts = { fc1: NativeTensor; fc2: NativeTensor } | (NativeTensor | NativeWeight)[];

function checkStacks(stacks: GroupedExperts): Checked {
  if (typeof stacks !== 'object' || stacks === null) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `experts: ${show(stacks)} came, expected {fc1, fc2} or an array of {gate, up, down}`,
    );
  }
  const { fc1, fc2 } = stacks;
  const handles = {
    fc1: checkTensor('experts.fc1', fc1, FACTOR_DTYPES, 3),
    fc2: checkTensor('experts.fc2', fc2, FACTOR_DTYPES, 3),
  };
  const [count, hidden, both] = fc1.shape as [number, number, number];
  if (fc2.shape.join() !== [count, both / 2, hidden].join()) {
    throw new QuantariaError(
      'ERR_SHAPE',
      `experts.fc1 [${fc1.shape}] and fc2 [${fc2.shape}] came, expected [E, hidden, 2 inter] and [E, inter, hidden]`,
    );
  }
  return { count, hidden, matrices: [fc1, fc2], handles: () => handles };
}

/** Layers have hundreds of matrices, which each call passes over: no strings and closures here unless one is refused. */
function checkList(list: readonly (SequentialExpert | QuantizedExpert)[]): Checked {
  const matrices: Matrix[] = [];
  for (let e = 0; e < list.length; e++) {
    const expert = list[e] as SequentialExpert | QuantizedExpert; // holes included
    if (typeof expert !== 'object' || expert === null) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `experts[${e}]: ${show(expert)} came, expected {gate, up, down}`,
      );
    }
    matrices.push(expert.gate, expert.up, expert.down);
  }
  let inter = 0;
  let hidden = 0;
  matrices.forEach((matrix, i) => {
    if (!QuantizedTensor.is(matrix)) checkTensor(nameOf(i), matrix, FACTOR_DTYPES, 2);
    if (i === 0) [inter, hidden] = matrix.shape as [number, number];
    const [rows, columns] = i % 3 === 2 ? [hidden, inter] : [inter, hidden];
    if (matrix.shape[0] !== rows || matrix.shape[1] !== columns) {
      throw new QuantariaError(
        'ERR_SHAPE',
        `${nameOf(i)}: [${matrix.shape}] came, expected [${rows},${columns}]`,
      );
    }
  });
  return {
    count: list.length,
    hidden: matrices[0]?.shape[1] ?? null,
    matrices,
    handles: () =>
      matrices.map((matrix, i) =>
        QuantizedTensor.is(matrix) ? matrix.forProducts() : Tensor.native(matrix, nameOf(i)),
      ),
  };
}

const nameOf = (i: number): string => `experts[${Math.floor(i / 3)}].${PROJECTIONS[i % 3]}`;

/**
 * One kind of products for all: in 16 bits where the activations have them, and every dense matrix the same dtype. On the CPU
 * that is bfloat16 alone.
 */
function products(compute: Compute, x: Tensor, matrices: readonly Matrix[]): Compute {
  if (compute === 'int8') {
    const other = matrices.find((matrix) => !QuantizedTensor.is(matrix) || matrix.scheme.kind !== 'int');
    if (other) {
      const kind = QuantizedTensor.is(other) ? other.scheme.kind : other.dtype;
      throw new QuantariaError(
        'ERR_UNSUPPORTED',
        `compute: int8 needs weights of integers, but one is ${kind}`,
      );
    }
  }
  if (compute !== 'auto') return compute;
  const in16Bits = x.dtype === 'bfloat16' || (x.dtype === 'float16' && x.device !== 'cpu');
  const all = matrices.every((matrix) => QuantizedTensor.is(matrix) || matrix.dtype === x.dtype);
  return in16Bits && all ? 'bfloat16' : 'float32';
}
