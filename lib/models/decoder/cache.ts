import { QuantariaError } from '../../errors';
import { type NativeTensor, native } from '../../native';
import { Tensor } from '../../tensor';

/** Keys and values of one sequence, layer by layer, for ids that come one after the other. */
export class KeyValueCache implements Disposable {
  readonly #layers = new Map<number, { k: NativeTensor; v: NativeTensor; length: number }>();

  /** @param capacity the most positions that it will hold */
  constructor(readonly capacity: number) {}

  /**
   * Keeps what a layer made of further positions.
   * @returns all of the layer's keys and values; views, which the caller disposes
   * @throws QuantariaError `ERR_ARGUMENT` past the capacity
   */
  append(layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor } {
    const room = this.#layers.get(layer) ?? this.#make(k, v);
    this.#layers.set(layer, room);
    const from = room.length;
    const end = from + (k.shape[0] as number);
    if (end > this.capacity) {
      throw new QuantariaError(
        'ERR_ARGUMENT',
        `the cache holds ${this.capacity} positions, ${end} are needed`,
      );
    }
    put(k, room.k, from, end);
    put(v, room.v, from, end);
    room.length = end;
    return {
      k: Tensor.wrap(native.tensorSlice(room.k, 0, 0, end, 1)),
      v: Tensor.wrap(native.tensorSlice(room.v, 0, 0, end, 1)),
    };
  }

  [Symbol.dispose](): void {
    for (const { k, v } of this.#layers.values()) {
      native.tensorDispose(k);
      native.tensorDispose(v);
    }
    this.#layers.clear();
  }

  #make(k: Tensor, v: Tensor) {
    return {
      k: native.tensorEmpty(k.dtype, [this.capacity, k.shape[1] as number], k.device),
      v: native.tensorEmpty(v.dtype, [this.capacity, v.shape[1] as number], v.device),
      length: 0,
    };
  }
}

function put(rows: Tensor, room: NativeTensor, from: number, end: number): void {
  const place = native.tensorSlice(room, 0, from, end, 1);
  try {
    native.tensorCopyInto(Tensor.native(rows, 'rows'), place);
  } finally {
    native.tensorDispose(place);
  }
}
