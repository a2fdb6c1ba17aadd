import { QuantariaError } from '../errors';

/** A tensor that is to be written. */
export interface Entry {
  name: string;
  /** As safetensors spells it. */
  dtype: string;
  shape: readonly number[];
}

/** A file that is to be written: every position is known before any data is. */
export interface ShardLayout {
  file: string;
  header: Uint8Array;
  /** Bytes of the whole file. */
  bytes: number;
  /** Position in the file and size of each tensor. */
  tensors: ReadonlyMap<string, { begin: number; bytes: number; entry: Entry }>;
}

/** The order in which the reference writer lays out dtypes, last first: wide types come before narrow ones, so that each tensor is aligned. */
const DTYPE_RANKS = [
  ...[
    'BOOL',
    'F4',
    'F6_E2M3',
    'F6_E3M2',
    'U8',
    'I8',
    'F8_E5M2',
    'F8_E4M3',
    'F8_E8M0',
    'F8_E4M3FNUZ',
    'F8_E5M2FNUZ',
  ],
  ...['I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'C64', 'F64', 'I64', 'U64'],
];
/** The format's limit; readers refuse more. */
const MAX_HEADER_BYTES = 100_000_000;
const BITS: Readonly<Record<string, number>> = {
  ...{ F4: 4, F6_E2M3: 6, F6_E3M2: 6, I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32 },
  ...{ C64: 64, F64: 64, I64: 64, U64: 64 },
};

/** Bytes of a tensor. @throws QuantariaError `ERR_ARGUMENT` for an unknown dtype or a size that is not whole bytes */
export function bytesOfEntry({ name, dtype, shape }: Entry): number {
  if (!DTYPE_RANKS.includes(dtype))
    throw new QuantariaError('ERR_ARGUMENT', `tensor ${name}: unknown dtype ${dtype}`);
  const bytes = (shape.reduce((a, b) => a * b, 1) * (BITS[dtype] ?? 8)) / 8;
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new QuantariaError('ERR_ARGUMENT', `tensor ${name}: ${dtype} [${shape}] does not fill whole bytes`);
}

const byDTypeThenName = (a: Entry, b: Entry): number =>
  DTYPE_RANKS.indexOf(b.dtype) - DTYPE_RANKS.indexOf(a.dtype) ||
  (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

/** Lays out one file as the reference writer would. */
export function layoutShard(
  file: string,
  entries: readonly Entry[],
  metadata: Record<string, string>,
): ShardLayout {
  const header = [`"__metadata__":${JSON.stringify(metadata)}`];
  const offsets = new Map<string, { begin: number; bytes: number; entry: Entry }>();
  let end = 0;
  for (const entry of [...entries].sort(byDTypeThenName)) {
    if (offsets.has(entry.name) || entry.name === '__metadata__') {
      throw new QuantariaError('ERR_ARGUMENT', `tensor ${entry.name} is written twice, or a reserved name`);
    }
    const begin = end;
    const bytes = bytesOfEntry(entry);
    end += bytes;
    offsets.set(entry.name, { begin, bytes, entry });
    const { name, dtype, shape } = entry;
    header.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`);
  }
  const json = Buffer.from(`{${header.join(',')}}`);
  if (json.length > MAX_HEADER_BYTES) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `${file}: a header of ${json.length} bytes, at most ${MAX_HEADER_BYTES} can be`,
    );
  }
  // Padded with spaces, so that the data begins at a multiple of eight.
  const padded = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  padded.writeBigUInt64LE(BigInt(padded.length - 8));
  json.copy(padded, 8);
  for (const tensor of offsets.values()) tensor.begin += padded.length;
  return { file, header: padded, bytes: padded.length + end, tensors: offsets };
}

const DEFAULT_SHARD_BYTES = 5e9;

/**
 * Files of at most `maxBytes` of tensors each, unless one tensor alone is larger. Entries stay in order; those of a group
 * are not parted if one file can hold them.
 */
export function layoutShards(
  groups: readonly (readonly Entry[])[],
  maxBytes: number = DEFAULT_SHARD_BYTES,
): ShardLayout[] {
  const shards: Entry[][] = [[]];
  let used = 0;
  const place = (entries: readonly Entry[], bytes: number) => {
    if (used > 0 && used + bytes > maxBytes) {
      shards.push([]);
      used = 0;
    }
    shards[shards.length - 1]?.push(...entries);
    used += bytes;
  };
  for (const group of groups) {
    const bytes = group.reduce((sum, entry) => sum + bytesOfEntry(entry), 0);
    if (bytes <= maxBytes) place(group, bytes);
    else for (const entry of group) place([entry], bytesOfEntry(entry));
  }
  const total = String(shards.length).padStart(5, '0');
  return shards.map((entries, i) => {
    const number = String(i + 1).padStart(5, '0');
    const file = shards.length === 1 ? 'model.safetensors' : `model-${number}-of-${total}.safetensors`;
    return layoutShard(file, entries, { format: 'pt' });
  });
}

/** The index of several files, or null for a single one, which needs none. */
export function indexOf(shards: readonly ShardLayout[]): string | null {
  if (shards.length < 2) return null;
  let size = 0;
  const names: [string, string][] = [];
  for (const shard of shards) {
    for (const [name, { bytes }] of shard.tensors) {
      names.push([name, shard.file]);
      size += bytes;
    }
  }
  names.sort(([a], [b]) => (a < b ? -1 : 1));
  return `${JSON.stringify({ metadata: { total_size: size }, weight_map: Object.fromEntries(names) }, null, 2)}\n`;
}
