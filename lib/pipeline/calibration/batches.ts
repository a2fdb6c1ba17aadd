import { createHash } from 'node:crypto';
import type { Span } from '../../models/decoder';
import type { RotaryTable } from '../../ops/decoder';
import { BATCH_IDS, type IdRows } from '../decoder';

/** Calibration rows, cut into batches that go through a layer together. */
export class Batches {
  /** Ids of each batch. */
  readonly rows: readonly number[];
  readonly #perBatch: number;

  constructor(
    private readonly all: IdRows,
    private readonly table: RotaryTable,
  ) {
    const { ids, length } = all;
    this.#perBatch = Math.max(1, Math.floor(BATCH_IDS / length)) * length;
    const count = Math.ceil(ids.length / this.#perBatch);
    this.rows = Array.from({ length: count }, (_, batch) => this.ids(batch).length);
  }

  ids(batch: number): Int32Array {
    return this.all.ids.subarray(batch * this.#perBatch, (batch + 1) * this.#perBatch);
  }

  span(batch: number): Span {
    const { length } = this.all;
    return { sequences: this.ids(batch).length / length, length, first: 0, table: this.table };
  }
}

/** Tells calibration data apart: a run goes on with the data that it began with. */
export const idsDigest = ({ ids }: IdRows): string =>
  createHash('sha256')
    .update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength))
    .digest('hex');
