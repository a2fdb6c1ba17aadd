import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { ioError } from '../../checkpoint/json_file';
import { type Checkpoint, openCheckpoint } from '../../checkpoint/reader';
import { SafetensorsWriter } from '../../checkpoint/writer';
import { getDefaultDevice } from '../../device';
import { Tensor } from '../../tensor';

/** States are kept in the 16 bits that products are fastest in; statistics need no more. */
export const STATE_DTYPE = 'bfloat16';

const nameOf = (batch: number) => `batch.${batch}`;

/**
 * States of all batches in one file, which is read through a mapping: memory holds them as long as there is room, and
 * nothing grows with their number.
 */
export class States implements Disposable {
  private constructor(
    private readonly file: Checkpoint,
    readonly batches: number,
  ) {}

  /** Null if there is no such file. @throws QuantariaError (as a rejection) `ERR_IO`, `ERR_FORMAT` */
  static async open(file: string): Promise<States | null> {
    try {
      await fs.access(file);
    } catch {
      return null;
    }
    const opened = await openCheckpoint(file);
    return new States(opened, opened.names().length);
  }

  /** `[ids of the batch, width]`, on the default device; the caller disposes it. */
  batch(batch: number): Tensor {
    const states = Tensor.wrap(this.file.view(nameOf(batch)));
    const device = getDefaultDevice();
    if (states.device === device) return states;
    using mapped = states;
    return mapped.to(device);
  }

  [Symbol.dispose](): void {
    this.file.close();
  }
}

/** Writes states batch by batch; until the last one is there, the file has no name. */
export class StateWriter {
  readonly #writer: SafetensorsWriter;

  /** @param rows of each batch */
  constructor(
    private readonly file: string,
    private readonly rows: readonly number[],
    width: number,
  ) {
    const entries = rows.map((count, batch) => ({
      name: nameOf(batch),
      dtype: 'BF16',
      shape: [count, width],
    }));
    this.#writer = new SafetensorsWriter(file, entries);
  }

  /** Settles when the states are in the file. */
  async put(batch: number, states: Tensor): Promise<void> {
    using cast = states.dtype === STATE_DTYPE ? null : states.cast(STATE_DTYPE);
    using here = (cast ?? states).to('cpu');
    await this.#writer.write(nameOf(batch), here);
  }

  async finish(): Promise<States> {
    await this.#writer.finish();
    const states = await States.open(this.file);
    if (states?.batches === this.rows.length) return states;
    throw ioError(this.file, new Error('the states that were just written are gone'));
  }

  async abort(): Promise<void> {
    await this.#writer.abort();
  }
}

export const removeStates = (directory: string, name: string): Promise<void> =>
  fs.rm(path.join(directory, name), { force: true });
