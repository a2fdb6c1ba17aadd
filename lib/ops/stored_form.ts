import type { DType } from '../dtype';
import { QuantariaError } from '../errors';
import { native } from '../native';
import { ELEMENT_BITS, type IntScheme, NESTED_BLOCK, type QuantScheme } from '../scheme';
import { Tensor } from '../tensor';
import { offsetCodes, packBits, unpackBits } from './bits';

/**
 * How a quantized weight is kept: `packed`, bit rows of unsigned codes (one row for each output; a single one for
 * schemes with flat blocks), and its constants, named as in `parts`. Symmetric integers are stored with
 * 2^(bits-1) added.
 */
export type StoredForm = Readonly<Record<string, Tensor>>;

interface Part {
  name: string;
  dtype: DType;
  shape: number[];
}

const MX_BLOCK = 32;

/** Bytes of a bit row: whole 32-bit words. */
export const bitRowBytes = (codes: number, bits: number): number => 4 * Math.ceil((codes * bits) / 32);

/** Bits of one stored code. */
export function codeBits(scheme: QuantScheme): number {
  switch (scheme.kind) {
    case 'int':
      return scheme.bits;
    case 'nf4':
    case 'fp4':
    case 'e3m0':
      return 4;
    case 'mx':
      return ELEMENT_BITS[scheme.element];
    case 'dynamic8':
    case 'fp8':
    case 'llm.int8':
      return 8;
    case 'spqr':
      throw new QuantariaError('ERR_UNSUPPORTED', 'scheme: spqr is not supported yet');
  }
}

const isFlat = (scheme: QuantScheme): boolean =>
  scheme.kind === 'nf4' || scheme.kind === 'fp4' || scheme.kind === 'e3m0' || scheme.kind === 'dynamic8';

/** `[rows, columns]` of the codes as they are packed. */
function codeRows(scheme: QuantScheme, [rows, columns]: readonly [number, number]): [number, number] {
  return isFlat(scheme) ? [1, rows * columns] : [rows, columns];
}

/** Shape of the scales (and zeros) of an integer scheme. */
export function constantsShape(
  scheme: IntScheme,
  [rows, columns]: readonly [number, number],
): [number, number] {
  switch (scheme.granularity) {
    case 'tensor':
      return [1, 1];
    case 'row':
      return [rows, 1];
    case 'column':
      return [1, columns];
    case 'group':
      return [rows, Math.ceil(columns / (scheme.groupSize as number))];
  }
}

/** The constants that stand beside the codes, the same in the stored form and in `parts`. */
function constants(scheme: QuantScheme, shape: readonly [number, number]): Part[] {
  const [rows, columns] = shape;
  switch (scheme.kind) {
    case 'int': {
      const dims = constantsShape(scheme, shape);
      const scales: Part = { name: 'scales', dtype: 'float32', shape: dims };
      return scheme.symmetric ? [scales] : [scales, { name: 'zeros', dtype: 'int32', shape: dims }];
    }
    case 'nf4':
    case 'fp4':
    case 'e3m0':
    case 'dynamic8': {
      const blocks = Math.ceil((rows * columns) / scheme.blockSize);
      if (scheme.kind === 'dynamic8' || !scheme.doubleQuant) {
        return [{ name: 'absmax', dtype: 'float32', shape: [blocks] }];
      }
      return [
        { name: 'absmaxCodes', dtype: 'uint8', shape: [blocks] },
        { name: 'absmaxScales', dtype: 'float32', shape: [Math.ceil(blocks / NESTED_BLOCK)] },
        { name: 'absmaxOffset', dtype: 'float32', shape: [1] },
      ];
    }
    case 'fp8':
      return [{ name: 'scales', dtype: 'float32', shape: [scheme.granularity === 'row' ? rows : 1, 1] }];
    case 'mx': {
      const scales: Part = { name: 'scales', dtype: 'uint8', shape: [rows, Math.ceil(columns / MX_BLOCK)] };
      return scheme.preScale ? [scales, { name: 'preScale', dtype: 'float32', shape: [rows, 1] }] : [scales];
    }
    case 'llm.int8':
      return [{ name: 'scales', dtype: 'float32', shape: [rows] }];
    case 'spqr':
      throw new QuantariaError('ERR_UNSUPPORTED', 'scheme: spqr is not supported yet');
  }
}

/** The tensors of a stored form, known from scheme and shape alone. */
export function storedForm(scheme: QuantScheme, shape: readonly [number, number]): Part[] {
  const [rows, columns] = codeRows(scheme, shape);
  const packed: Part = {
    name: 'packed',
    dtype: 'uint8',
    shape: [rows, bitRowBytes(columns, codeBits(scheme))],
  };
  return [packed, ...constants(scheme, shape)];
}

/** dtype of the unpacked codes, and what is added to them in the stored form. */
function codesPart(scheme: QuantScheme): { dtype: 'uint8' | 'int8' | 'int16' | 'int32'; offset: number } {
  if (scheme.kind === 'llm.int8') return { dtype: 'int8', offset: 128 };
  if (scheme.kind !== 'int') return { dtype: 'uint8', offset: 0 };
  if (!scheme.symmetric) return { dtype: scheme.bits === 16 ? 'int32' : 'uint8', offset: 0 };
  return { dtype: scheme.bits === 16 ? 'int16' : 'int8', offset: 2 ** (scheme.bits - 1) };
}

/** The canonical parts of a stored form, as new tensors. */
export function partsOf(
  scheme: QuantScheme,
  shape: readonly number[],
  stored: StoredForm,
): Record<string, Tensor> {
  const dims = shape as [number, number];
  const { dtype, offset } = codesPart(scheme);
  const columns = codeRows(scheme, dims)[1];
  const rows = unpackBits(stored.packed as Tensor, columns, codeBits(scheme), undefined, { dtype, offset });
  const parts: Record<string, Tensor> = { codes: rows.reshape(dims) };
  const { device } = rows;
  rows.dispose();
  for (const { name } of constants(scheme, dims)) parts[name] = (stored[name] as Tensor).to(device);
  if (parts.absmaxCodes) parts.absmax = nestedAbsmax(stored);
  if (stored.groupIndex) parts.groupIndex = stored.groupIndex.to(device);
  return parts;
}

/** absmax float32 `[blocks]` that the double-quantized constants decode to. */
function nestedAbsmax(stored: StoredForm): Tensor {
  const [codes, scales, offset] = [stored.absmaxCodes, stored.absmaxScales, stored.absmaxOffset].map(
    (tensor) => Tensor.native(tensor, 'absmax'),
  );
  return Tensor.wrap(native.nestedAbsmax(codes!, scales!, offset!));
}

/** @throws QuantariaError `ERR_ARGUMENT`, `ERR_DTYPE` or `ERR_SHAPE` naming the part that does not fit */
export function storedFromParts(
  scheme: QuantScheme,
  shape: readonly [number, number],
  parts: Readonly<Record<string, Tensor>>,
): StoredForm {
  const { dtype, offset } = codesPart(scheme);
  const codes = takePart(parts, { name: 'codes', dtype, shape: [...shape] });
  const flat = codes.reshape(codeRows(scheme, shape));
  const stored: Record<string, Tensor> = {
    packed: isRestricted(scheme)
      ? packRestricted(flat, scheme, offset)
      : packBits(flat, codeBits(scheme), undefined, offset),
  };
  flat.dispose();
  const known = new Set(['codes']);
  for (const part of constants(scheme, shape)) {
    known.add(part.name);
    stored[part.name] = takePart(parts, part).to(codes.device);
  }
  if (stored.absmaxCodes) known.add('absmax');
  if (scheme.kind === 'int' && parts.groupIndex !== undefined) {
    known.add('groupIndex');
    stored.groupIndex = takePart(parts, { name: 'groupIndex', dtype: 'int32', shape: [shape[1]] }).to(
      codes.device,
    );
  }
  const unknown = Object.keys(parts).find((name) => !known.has(name));
  if (unknown !== undefined) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `parts.${unknown}: no such part; expected ${[...known].join(', ')}`,
    );
  }
  return stored;
}

const isRestricted = (scheme: QuantScheme): boolean =>
  scheme.kind === 'llm.int8' || (scheme.kind === 'int' && scheme.symmetric && scheme.range !== 'full');

/**
 * Packs codes of a symmetric range that lacks the lowest value of its bits. Moved so that the lowest allowed code falls on
 * the lowest value of the dtype, the forbidden one cannot be held, and is refused.
 */
function packRestricted(codes: Tensor, scheme: QuantScheme, offset: number): Tensor {
  const dtype = codes.dtype === 'int16' ? 'int16' : 'int8';
  const delta = offset - 1 - (dtype === 'int16' ? 32768 : 128);
  const moved = offsetCodes(codes, delta, dtype);
  const packed = packBits(moved, codeBits(scheme), undefined, offset - delta);
  moved.dispose();
  return packed;
}

function takePart(parts: Readonly<Record<string, Tensor>>, { name, dtype, shape }: Part): Tensor {
  const tensor = parts[name];
  if (tensor === undefined) throw new QuantariaError('ERR_ARGUMENT', `parts.${name}: missing`);
  Tensor.native(tensor, `parts.${name}`);
  if (tensor.dtype !== dtype) {
    throw new QuantariaError('ERR_DTYPE', `parts.${name}: ${tensor.dtype} came, expected ${dtype}`);
  }
  const fits = tensor.shape.length === shape.length && tensor.shape.every((n, i) => n === shape[i]);
  if (!fits)
    throw new QuantariaError('ERR_SHAPE', `parts.${name}: [${tensor.shape}] came, expected [${shape}]`);
  return tensor;
}
