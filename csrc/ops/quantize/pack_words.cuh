#pragma once

#include "ops/quantize/segments.cuh"

/// From a weight and its constants to packed codes.
namespace quantaria::ops {

inline constexpr int kPackThreads = 256;

/// Where the codes go: `rows` bit rows of `row_words` words, `cols` codes each.
struct BitRows {
  uint32_t* words;
  int64_t rows;
  int64_t cols;
  int64_t row_words;
  int bits;
};

/// Word `word` of a bit row, those codes on its borders made once more than needed: encoder.at(shared, walk,
/// row, col) gives a cursor, whose next(value) is the code of one column after the other.
template <class Encoder, class Rows>
__device__ __forceinline__ uint32_t packed_word(const Encoder& encoder,
                                                const typename Encoder::Shared& shared, const Rows& walk,
                                                const BitRows& to, int64_t row, int64_t word) {
  int64_t col = word * 32 / to.bits;
  int at = static_cast<int>(col * to.bits - word * 32);
  auto cursor = encoder.at(shared, walk, row, col);
  uint32_t packed = 0;
  for (; at < 32 && col < to.cols; ++col, at += to.bits) {
    const uint32_t code = cursor.next(shared, walk.seen(walk.at(row, col)));
    packed |= at >= 0 ? code << at : code >> -at;
  }
  return packed;
}

/// A thread for each word.
template <class Encoder>
__global__ void __launch_bounds__(kPackThreads)
    pack_words(const __grid_constant__ Walk walk, const __grid_constant__ BitRows to,
               const __grid_constant__ Encoder encoder, bool along_rows) {
  auto& shared = simt::shared<typename Encoder::Shared>();
  encoder.prepare(shared);
  const int64_t count = to.rows * to.row_words;
  const int64_t stride = int64_t{gridDim.x} * kPackThreads;
  for (int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x; i < count; i += stride) {
    const int64_t row = along_rows ? i % to.rows : i / to.row_words;
    const int64_t word = along_rows ? i / to.rows : i % to.row_words;
    simt::store(to.words + row * to.row_words + word, packed_word(encoder, shared, walk, to, row, word));
  }
}

template <class Encoder>
void launch_pack(simt::Stream stream, const Walk& walk, const BitRows& to, const Encoder& encoder) {
  const int64_t count = to.rows * to.row_words;
  if (count == 0) return;
  const bool along_rows = !walk.across && walk.w.row_stride < walk.w.col_stride;
  simt::launch(pack_words<Encoder>, cuda::blocks_for(count, kPackThreads), dim3(kPackThreads),
               sizeof(typename Encoder::Shared), stream, walk, to, encoder, along_rows);
}

/// Bit rows of a weight's rows.
inline BitRows bit_rows(uint8_t* packed, int bits, int64_t rows, int64_t cols) {
  return {reinterpret_cast<uint32_t*>(packed), rows, cols, (cols * bits + 31) / 32, bits};
}

/// Encoders that need nothing in shared memory.
struct NothingShared {
  char unused;
};

}  // namespace quantaria::ops
