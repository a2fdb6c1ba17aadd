import type { Piece } from '../models';
import { type NativeTensor, native } from '../native';
import { tensorInfo } from '../tensor_info';

/** Runs `body` and disposes what it registered, in any case. */
export function scoped<T>(body: (own: (tensor: NativeTensor) => NativeTensor) => T): T {
  const owned: NativeTensor[] = [];
  try {
    return body((tensor) => {
      owned.push(tensor);
      return tensor;
    });
  } finally {
    for (const tensor of owned) native.tensorDispose(tensor);
  }
}

/**
 * The logical `[out, in]` matrix that a piece is, as a strided view.
 * @param stored the piece's tensor; a stack may be given as the one slab `[1, ...]` of the piece's expert
 */
export function pieceView(stored: NativeTensor, piece: Piece): NativeTensor {
  return scoped((own) => {
    let matrix = stored;
    if (piece.expert !== null) {
      const slabs = tensorInfo(stored).shape[0];
      matrix = own(native.tensorSelect(stored, 0, slabs === 1 ? 0 : piece.expert));
    }
    const outAxis = piece.transposed ? 1 : 0;
    const rows = native.tensorSlice(matrix, outAxis, piece.start, piece.end, piece.step);
    return piece.transposed ? native.tensorTransposed(own(rows)) : rows;
  });
}
