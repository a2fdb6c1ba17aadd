/**
 * Decoders written from the formats' descriptions alone, over bytes and plain arrays: they share no code with the library.
 * Every product of two float32 values is rounded once, as a loader's float32 arithmetic would.
 */
import { createHash } from 'node:crypto';
import type { Raw } from './memory_checkpoint';

export type RawTensors = ReadonlyMap<string, Raw>;
type Decoder = (tensors: RawTensors, module: string, shape: readonly [number, number]) => Float32Array;

const get = (tensors: RawTensors, name: string): Raw => {
  const raw = tensors.get(name);
  if (raw === undefined) throw new Error(`${name} is missing`);
  return raw;
};
const view = ({ bytes }: Raw) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
}

function bfloatToFloat(bits: number): number {
  const buffer = new DataView(new ArrayBuffer(4));
  buffer.setUint32(0, bits * 65536);
  return buffer.getFloat32(0);
}

export function e4m3ToFloat(code: number): number {
  const sign = code & 0x80 ? -1 : 1;
  const exponent = (code >> 3) & 15;
  const mantissa = code & 7;
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
}

function e5m2ToFloat(code: number): number {
  return halfToFloat(code << 8);
}

const e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const e2m1ToFloat = (code: number) => (code & 8 ? -1 : 1) * (e2m1[code & 7] as number);

/** All elements of a float tensor. */
function floats(raw: Raw): number[] {
  const data = view(raw);
  const count = raw.shape.reduce((product, size) => product * size, 1);
  return Array.from({ length: count }, (_, index) => {
    switch (raw.dtype) {
      case 'F32':
        return data.getFloat32(4 * index, true);
      case 'F16':
        return halfToFloat(data.getUint16(2 * index, true));
      case 'BF16':
        return bfloatToFloat(data.getUint16(2 * index, true));
      default:
        throw new Error(`${raw.dtype} is no scale`);
    }
  });
}

/** `bits` bits from bit `start` of a little-endian byte string. */
function bitsAt(bytes: Uint8Array, start: number, bits: number): number {
  let value = 0;
  for (let bit = 0; bit < bits; ++bit) {
    const position = start + bit;
    value |= (((bytes[position >> 3] as number) >> (position & 7)) & 1) << bit;
  }
  return value;
}

/** A column of int32 words `[words, columns]` as one byte string. */
function columnBytes(raw: Raw, column: number): Uint8Array {
  const [words, columns] = raw.shape as [number, number];
  const bytes = new Uint8Array(4 * words);
  for (let word = 0; word < words; ++word) {
    const from = 4 * (word * columns + column);
    bytes.set(raw.bytes.subarray(from, from + 4), 4 * word);
  }
  return bytes;
}

function rowBytes(raw: Raw, row: number): Uint8Array {
  const size = raw.bytes.length / (raw.shape[0] as number);
  return raw.bytes.subarray(row * size, (row + 1) * size);
}

const fill = ([rows, width]: readonly [number, number], value: (row: number, column: number) => number) =>
  Float32Array.from({ length: rows * width }, (_, index) => value(Math.floor(index / width), index % width));

/** `version` 1 stores zero points less one. */
export const gptq =
  (version: 1 | 2): Decoder =>
  (tensors, module, [rows, width]) => {
    const qweight = get(tensors, `${module}.qweight`);
    const qzeros = get(tensors, `${module}.qzeros`);
    const scales = floats(get(tensors, `${module}.scales`));
    const index = view(get(tensors, `${module}.g_idx`));
    const bits = ((qweight.shape[0] as number) * 32) / width;
    const columns = Array.from({ length: rows }, (_, row) => columnBytes(qweight, row));
    return fill([rows, width], (row, column) => {
      const group = index.getInt32(4 * column, true);
      const code = bitsAt(columns[row] as Uint8Array, column * bits, bits);
      const zero = bitsAt(rowBytes(qzeros, group), row * bits, bits) + (version === 1 ? 1 : 0);
      return (code - zero) * (scales[group * rows + row] as number);
    });
  };

export const awq: Decoder = (tensors, module, [rows, width]) => {
  const order = [0, 2, 4, 6, 1, 3, 5, 7];
  const qweight = get(tensors, `${module}.qweight`);
  const qzeros = get(tensors, `${module}.qzeros`);
  const scales = floats(get(tensors, `${module}.scales`));
  const group = width / (qzeros.shape[0] as number);
  const nibble = (raw: Raw, line: number, channel: number) => {
    const word = view(raw).getUint32(4 * (line * (rows / 8) + Math.floor(channel / 8)), true);
    return (word >>> (4 * order.indexOf(channel % 8))) & 15;
  };
  return fill([rows, width], (row, column) => {
    const own = Math.floor(column / group);
    return (nibble(qweight, column, row) - nibble(qzeros, own, row)) * (scales[own * rows + row] as number);
  });
};

export const compressedTensors: Decoder = (tensors, module, shape) => {
  const [rows, width] = shape;
  const packed = tensors.get(`${module}.weight_packed`);
  const scale = get(tensors, `${module}.weight_scale`);
  if (packed?.dtype === 'U8') {
    return fill(shape, (row, column) => {
      const byte = packed.bytes[(row * width + column) >> 1] as number;
      const exponent = scale.bytes[row * (width / 32) + Math.floor(column / 32)] as number;
      return e2m1ToFloat(column % 2 === 0 ? byte & 15 : byte >> 4) * 2 ** (exponent - 127);
    });
  }
  if (packed === undefined) {
    const weight = get(tensors, `${module}.weight`);
    if (scale.dtype === 'U8') {
      return fill(shape, (row, column) => {
        const exponent = scale.bytes[row * (width / 32) + Math.floor(column / 32)] as number;
        return e4m3ToFloat(weight.bytes[row * width + column] as number) * 2 ** (exponent - 127);
      });
    }
    const scales = floats(scale);
    return fill(shape, (row, column) => {
      const factor = scales[scales.length === 1 ? 0 : row] as number;
      return e4m3ToFloat(weight.bytes[row * width + column] as number) * factor;
    });
  }
  const stored = view(get(tensors, `${module}.weight_shape`));
  if (Number(stored.getBigInt64(0, true)) !== rows || Number(stored.getBigInt64(8, true)) !== width) {
    throw new Error('weight_shape is not [out, in]');
  }
  // Words are the least that hold the row: the widths tried here are wide enough to tell the bits.
  const words = packed.shape[1] as number;
  const bits = [2, 3, 4, 5, 6, 8].find(
    (candidate) => Math.ceil((width * candidate) / 32) === words,
  ) as number;
  const scales = floats(scale);
  const groups = scale.shape.length === 1 ? 1 : (scale.shape[1] as number);
  const zeros = tensors.get(`${module}.weight_zero_point`);
  const index = tensors.get(`${module}.weight_g_idx`);
  return fill(shape, (row, column) => {
    const group =
      index === undefined ? Math.floor(column / (width / groups)) : view(index).getInt32(4 * column, true);
    const code = bitsAt(rowBytes(packed, row), column * bits, bits) - 2 ** (bits - 1);
    const zero =
      zeros === undefined ? 0 : bitsAt(columnBytes(zeros, group), row * bits, bits) - 2 ** (bits - 1);
    return (code - zero) * (scales[scale.shape.length === 1 ? 0 : row * groups + group] as number);
  });
};

export const bitsandbytes: Decoder = (tensors, module, shape) => {
  const [rows, width] = shape;
  const weight = get(tensors, `${module}.weight`);
  const scb = tensors.get(`${module}.SCB`);
  if (scb !== undefined) {
    if (view(get(tensors, `${module}.weight_format`)).getUint8(0) !== 0)
      throw new Error('weight_format is not 0');
    const absmax = floats(scb);
    const codes = view(weight);
    return fill(shape, (row, column) => {
      const product = Math.fround(codes.getInt8(row * width + column) * (absmax[row] as number));
      return product / 127;
    });
  }
  const kind = tensors.has(`${module}.weight.quant_state.bitsandbytes__nf4`) ? 'nf4' : 'fp4';
  const text = Buffer.from(get(tensors, `${module}.weight.quant_state.bitsandbytes__${kind}`).bytes).toString(
    'utf8',
  );
  const state = JSON.parse(text) as {
    quant_type: string;
    blocksize: number;
    shape: number[];
    nested_offset?: number;
  };
  if (state.quant_type !== kind || state.shape[0] !== rows || state.shape[1] !== width) throw new Error(text);
  const map = floats(get(tensors, `${module}.weight.quant_map`));
  const stored = get(tensors, `${module}.weight.absmax`);
  const absmax =
    stored.dtype === 'F32'
      ? floats(stored)
      : nestedAbsmax(tensors, module, stored, state.nested_offset as number);
  return fill(shape, (row, column) => {
    const element = row * width + column;
    const byte = weight.bytes[element >> 1] as number;
    const code = element % 2 === 0 ? byte >> 4 : byte & 15;
    return (map[code] as number) * (absmax[Math.floor(element / state.blocksize)] as number);
  });
};

function nestedAbsmax(tensors: RawTensors, module: string, stored: Raw, offset: number): number[] {
  const mapRaw = get(tensors, `${module}.weight.nested_quant_map`);
  const hash = createHash('sha256').update(mapRaw.bytes).digest('hex');
  if (hash !== 'e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c')
    throw new Error('another 8-bit map');
  const map = floats(mapRaw);
  const nested = floats(get(tensors, `${module}.weight.nested_absmax`));
  return Array.from(stored.bytes, (code, block) =>
    Math.fround(Math.fround((map[code] as number) * (nested[block >> 8] as number)) + Math.fround(offset)),
  );
}

export const quanto: Decoder = (tensors, module, shape) => {
  const [rows, width] = shape;
  const scaleRaw = get(tensors, `${module}.weight._scale`);
  const scales = floats(scaleRaw);
  const bytes = tensors.get(`${module}.weight._data`);
  if (bytes !== undefined) {
    if (rows === 1 && scaleRaw.shape.length !== 0) throw new Error('one row alone has a scalar scale');
    const value = (code: number) =>
      bytes.dtype === 'I8'
        ? (code << 24) >> 24
        : bytes.dtype === 'F8_E4M3'
          ? e4m3ToFloat(code)
          : e5m2ToFloat(code);
    return fill(
      shape,
      (row, column) => value(bytes.bytes[row * width + column] as number) * (scales[row] as number),
    );
  }
  const data = get(tensors, `${module}.weight._data._data`);
  const shift = view(get(tensors, `${module}.weight._shift`));
  let group = 128;
  if (width > 128) while (width % group !== 0 && group > 32) group -= 32;
  if (width <= 128 || width % group !== 0) group = width;
  const count = (rows * width) / group;
  const planes = data.shape[0] as number;
  const bits = planes === Math.ceil(count / 2) ? 4 : 2;
  return fill(shape, (row, column) => {
    const element = row * width + column;
    const line = Math.floor(element / group);
    const byte = data.bytes[(line % planes) * group + (element % group)] as number;
    const code = (byte >> (bits * Math.floor(line / planes))) & (2 ** bits - 1);
    return (code - shift.getInt8(line)) * (scales[line] as number);
  });
};

/** One expert's `[rows, in]` out of a gpt-oss stack: `start` and `step` pick the rows that are gate, up or down. */
export function gptOssExpert(
  blocks: Raw,
  scales: Raw,
  expert: number,
  start: number,
  step: number,
): Float32Array {
  const [, out, groups] = blocks.shape as [number, number, number, number];
  return fill([out / step, groups * 32], (row, column) => {
    const line = expert * out + start + row * step;
    const byte = blocks.bytes[
      (line * groups + Math.floor(column / 32)) * 16 + ((column % 32) >> 1)
    ] as number;
    const exponent = scales.bytes[line * groups + Math.floor(column / 32)] as number;
    return e2m1ToFloat(column % 2 === 0 ? byte & 15 : byte >> 4) * 2 ** (exponent - 127);
  });
}
