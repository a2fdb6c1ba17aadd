import { QuantariaError } from '../errors';
import type { ActivationDType } from '../ops/decoder';
import type { Usage } from '../recipe/types';
import type { Tensor } from '../tensor';
import { Decoder, type IdRows } from './decoder';
import { waves } from './evaluate';
import { type RowOptions, readRows } from './rows';

export interface RunOptions extends RowOptions {
  /** Of activations; default float32. `stored` is the checkpoint's own. */
  dtype?: ActivationDType | 'stored';
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * How often each expert is chosen for the ids of a text: every id of every row counts, once for each expert it goes to.
 * @throws QuantariaError (as a rejection) `ERR_UNSUPPORTED` for a model without experts, and whatever running it throws
 */
export async function expertUsage(directory: string, options: RunOptions): Promise<Usage> {
  using decoder = await Decoder.open(directory, options.dtype);
  if (decoder.weights.experts === 0) {
    throw new QuantariaError('ERR_UNSUPPORTED', `${directory}: the model has no experts`);
  }
  const rows = await readRows(decoder.weights.directory, options);
  const counts = new Map<number, number[]>();
  const total = decoder.shape.layers * Math.ceil(rows.ids.length / rows.length);
  let done = 0;
  for (const wave of waves(rows, decoder.shape.hidden)) {
    const pending: Promise<void>[] = [];
    const states = await decoder.states(wave, {
      signal: options.signal,
      onRouting: (layer, routing) => pending.push(addCounts(counts, layer, routing.counts)),
      onLayer: () => {
        done += wave.ids.length / wave.length;
        options.onProgress?.(done, total);
      },
    });
    for (const x of states) x.dispose();
    await Promise.all(pending);
  }
  const layers = [...counts].sort(([a], [b]) => a - b).map(([layer, each]) => ({ layer, counts: each }));
  return { tokens: rows.ids.length, layers };
}

async function addCounts(counts: Map<number, number[]>, layer: number, tensor: Tensor): Promise<void> {
  const batch = (await tensor.read()) as Int32Array;
  const sums = counts.get(layer) ?? new Array<number>(batch.length).fill(0);
  counts.set(
    layer,
    sums.map((sum, e) => sum + (batch[e] as number)),
  );
}

export type { IdRows };
