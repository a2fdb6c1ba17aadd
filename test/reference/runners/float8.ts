import { dequantize } from '../../../lib/ops/quantize';
import { QuantizedTensor } from '../../../lib/quantized';
import { type DType, Tensor } from '../../../lib/tensor';
import { type Check, type Runner, type Runners, valuesOf } from '../harness';

/** The raw bytes of a cast. */
async function castBytes(x: Tensor, dtype: DType) {
  const cast = x.cast(dtype);
  return { shape: cast.shape, data: (await cast.read()) as Uint8Array };
}

const NO_COUNTERPART = 'no such dtype';
const E5M2_INFINITY = 0x7c;
const E5M2_LARGEST = 0x7b;

const fp8Cast: Runner = {
  async run(check) {
    const x = await check.input('x');
    const e4m3 = await castBytes(x, 'float8_e4m3');
    const e5m2 = await castBytes(x, 'float8_e5m2');
    const recorded = await check.values('codes_e5m2');
    await check.output('codes_e4m3fn', e4m3);
    // The peer's e5m2 overflows to infinity; a cast here saturates.
    await check.output('codes_e5m2', e5m2, {
      difference: {
        at: (i) => ((recorded.data[i] as number) & 0x7f) === E5M2_INFINITY,
        instead: (i) => ((recorded.data[i] as number) & 0x80) | E5M2_LARGEST,
      },
    });
    if (check.has('codes_sat_e4m3fn')) await check.output('codes_sat_e4m3fn', e4m3);
    if (check.has('codes_sat_e5m2')) await check.output('codes_sat_e5m2', e5m2);
    check.omit(NO_COUNTERPART, 'codes_e4m3fnuz', 'codes_e5m2fnuz', 'codes_e8m0fnu');
  },
};

const fp8Decode: Runner = {
  async run(check: Check) {
    const bytes = (await (await check.input('bytes')).read()) as Uint8Array;
    const decoded = (dtype: DType) => valuesOf(Tensor.from(bytes, [bytes.length], { dtype }));
    await check.output('e4m3fn', await decoded('float8_e4m3'));
    await check.output('e5m2', await decoded('float8_e5m2'));
    await check.output('e8m0fnu', await scaleValues(bytes));
    check.omit(NO_COUNTERPART, 'e4m3fnuz', 'e5m2fnuz');
  },
};

/** The value of each byte as the scale of a block whose one element is 1. */
async function scaleValues(bytes: Uint8Array) {
  const one = 0x38;
  const shape = [bytes.length, 1];
  const codes = Tensor.from(new Uint8Array(bytes.length).fill(one), shape);
  using q = QuantizedTensor.fromParts({ kind: 'mx', element: 'e4m3' }, shape, {
    codes,
    scales: Tensor.from(bytes, shape),
  });
  return valuesOf(dequantize(q));
}

export const float8: Runners = { fp8_cast: fp8Cast, fp8_decode: fp8Decode };
