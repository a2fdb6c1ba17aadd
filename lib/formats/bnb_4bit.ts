import { bitcast, packBits, swapNibbles, unpackBits } from '../ops/bits';
import { QuantizedTensor } from '../quantized';
import { type CodebookScheme, NESTED_BLOCK } from '../scheme';
import { Tensor } from '../tensor';
import { dynamicMap, fp4Map, nf4Map } from './bnb_maps';
import { parseObject, positiveInteger } from './json';
import { consume, malformed, readAs, requireEntry, requireShape, tensorsOf } from './tensors';
import type { JsonObject, StoredCheckpoint, StoredModule, TensorReader } from './types';

/** bitsandbytes keeps what is no tensor of a 4-bit weight as JSON text in a byte tensor of this name. */
export const stateEndings = [
  '.weight.quant_state.bitsandbytes__nf4',
  '.weight.quant_state.bitsandbytes__fp4',
];

/** Room for any non-negative float32 as JavaScript prints it (24 characters at most). */
const OFFSET_CHARACTERS = 24;
/** Far above what the library writes; a longer text is not its. */
const LONGEST_STATE = 4096;

/** The text as Python's json.dumps spaces it. */
function quantState(
  scheme: CodebookScheme,
  shape: readonly [number, number],
  dtype: string,
  offset: string | null,
): string {
  const nested =
    offset === null
      ? ''
      : `, "nested_blocksize": ${NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": ${offset}`;
  return `{"quant_type": "${scheme.kind}", "blocksize": ${scheme.blockSize}, "dtype": "${dtype}", "shape": [${shape[0]}, ${shape[1]}]${nested}}`;
}

/** Bytes of the text: fixed before the data is known, the offset's digits included; a shorter text ends in spaces. */
export function quantStateLength(
  scheme: CodebookScheme,
  shape: readonly [number, number],
  dtype: string,
): number {
  return quantState(scheme, shape, dtype, scheme.doubleQuant ? '0'.repeat(OFFSET_CHARACTERS) : null).length;
}

export function quantStateBytes(
  scheme: CodebookScheme,
  shape: readonly [number, number],
  dtype: string,
  offset: number | null,
): Uint8Array {
  const text = quantState(scheme, shape, dtype, offset === null ? null : String(offset));
  return new TextEncoder().encode(text.padEnd(quantStateLength(scheme, shape, dtype)));
}

export async function fourBitModule(
  source: StoredCheckpoint,
  module: string,
  ending: string,
): Promise<StoredModule> {
  const weight = `${module}.weight`;
  const stateName = module + ending;
  const kind = ending.endsWith('nf4') ? 'nf4' : 'fp4';
  const state = await readState(source, stateName);
  if (state.quant_type !== kind)
    malformed(stateName, `quant_type ${JSON.stringify(state.quant_type)}, expected "${kind}"`);
  const blockSize = positiveInteger(state.blocksize, `${stateName} (blocksize)`);
  const shape = shapeOf(state, stateName);
  const count = shape[0] * shape[1];
  const blocks = Math.ceil(count / blockSize);

  const stored = requireEntry(source, weight, ['U8', 'BF16', 'F16', 'F32'], 2);
  const bytes = (stored.shape[0] as number) * (stored.shape[1] as number) * bytesOf(stored.dtype);
  if (bytes !== Math.ceil(count / 2))
    malformed(weight, `${bytes} bytes, expected ${Math.ceil(count / 2)} for [${shape.join(', ')}]`);
  const absmax = requireEntry(source, `${weight}.absmax`, ['F32', 'U8'], 1);
  requireShape(`${weight}.absmax`, absmax, [blocks]);
  requireShape(`${weight}.quant_map`, requireEntry(source, `${weight}.quant_map`, ['F32'], 1), [16]);
  const doubleQuant = absmax.dtype === 'U8';
  if (doubleQuant) {
    if (state.nested_blocksize !== NESTED_BLOCK)
      malformed(stateName, `nested_blocksize ${String(state.nested_blocksize)}, expected 256`);
    if (typeof state.nested_offset !== 'number') malformed(stateName, 'nested_offset is not a number');
    const nested = requireEntry(source, `${weight}.nested_absmax`, ['F32'], 1);
    requireShape(`${weight}.nested_absmax`, nested, [Math.ceil(blocks / NESTED_BLOCK)]);
    requireShape(
      `${weight}.nested_quant_map`,
      requireEntry(source, `${weight}.nested_quant_map`, ['F32'], 1),
      [256],
    );
  }
  const endings = [
    '.weight',
    '.weight.absmax',
    '.weight.quant_map',
    '.weight.nested_absmax',
    '.weight.nested_quant_map',
    ending,
  ];
  return {
    module,
    scheme: { kind, blockSize, doubleQuant },
    shape,
    tensors: tensorsOf(source, module, endings),
    detail: { storage: stored.dtype, offset: doubleQuant ? (state.nested_offset as number) : 0 },
  };
}

const bytesOf = (dtype: string): number => ({ U8: 1, BF16: 2, F16: 2 })[dtype] ?? 4;

async function readState(source: StoredCheckpoint, name: string): Promise<JsonObject> {
  const entry = requireEntry(source, name, ['U8'], 1);
  if ((entry.shape[0] as number) > LONGEST_STATE)
    malformed(name, `${entry.shape[0]} bytes of JSON, expected at most ${LONGEST_STATE}`);
  const tensor = await source.read(name);
  const bytes = (await tensor.read()) as Uint8Array;
  tensor.dispose();
  return parseObject(Buffer.from(bytes).toString('utf8'), name);
}

function shapeOf(state: JsonObject, name: string): [number, number] {
  const { shape } = state;
  if (!Array.isArray(shape) || shape.length !== 2)
    malformed(name, `shape ${JSON.stringify(shape)}, expected two sizes`);
  return [positiveInteger(shape[0], `${name} (shape)`), positiveInteger(shape[1], `${name} (shape)`)];
}

export async function decodeFourBit(module: StoredModule, read: TensorReader): Promise<QuantizedTensor> {
  const weight = `${module.module}.weight`;
  const scheme = module.scheme as CodebookScheme;
  const [rows, width] = module.shape;
  const count = rows * width;
  const blocks = Math.ceil(count / scheme.blockSize);
  await requireMap(read, `${weight}.quant_map`, scheme.kind === 'nf4' ? nf4Map : fp4Map);
  const constants: Record<string, Tensor> = {};
  if (scheme.doubleQuant) {
    await requireMap(read, `${weight}.nested_quant_map`, dynamicMap);
    constants.absmaxCodes = await readAs(read, `${weight}.absmax`, 'uint8', [blocks]);
    constants.absmaxScales = await readAs(read, `${weight}.nested_absmax`, 'float32', [
      Math.ceil(blocks / NESTED_BLOCK),
    ]);
    constants.absmaxOffset = Tensor.from(Float32Array.of(module.detail.offset as number), [1], {
      device: constants.absmaxCodes.device,
    });
  } else {
    constants.absmax = await readAs(read, `${weight}.absmax`, 'float32', [blocks]);
  }
  const raw = await read(weight);
  const bytes = Math.ceil(count / 2);
  if (raw.byteLength !== bytes) malformed(weight, `${raw.byteLength} bytes, expected ${bytes}`);
  // Storage in a 16- or 32-bit type is the same bytes under another name.
  const flat = consume(raw, (tensor) => bitcast(tensor, 'uint8', [1, bytes]), swapNibbles);
  return QuantizedTensor.fromStored(scheme, [rows, width], {
    // Unpacked and packed again where the last word is not full: a bit row ends at a whole word, in zero bits.
    packed:
      count % 8 === 0
        ? flat
        : consume(
            flat,
            (row) => unpackBits(row, count, 4),
            (codes) => packBits(codes, 4),
          ),
    ...constants,
  });
}

async function requireMap(read: TensorReader, name: string, expected: Float32Array): Promise<void> {
  const tensor = await readAs(read, name, 'float32', [expected.length]);
  const values = await tensor.read();
  tensor.dispose();
  const other = expected.findIndex((value, code) => value !== values[code]);
  if (other >= 0)
    malformed(name, `code ${other} means ${String(values[other])}, expected ${expected[other]}`);
}
