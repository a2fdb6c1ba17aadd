/** Bits of one element of each safetensors type. */
const BITS: Record<string, number> = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
  C64: 64,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
};

/** Bytes of a stored tensor; a type that safetensors does not have counts nothing. */
export function storedBytes(dtype: string, shape: readonly number[]): number {
  return Math.ceil((shape.reduce((size, extent) => size * extent, 1) * (BITS[dtype] ?? 0)) / 8);
}
