#include "ops/copy/transpose.h"

#include <algorithm>
#include <cstring>

namespace quantaria::ops {
namespace {

/// Registers of 16 bytes, which every x86-64 has: here the memory is the limit, not their width.
template <class T>
struct Block {
  static constexpr int kSize = 16 / sizeof(T);
  using Register [[gnu::vector_size(16)]] = T;
  using Indices = Register;

  Register row[kSize];
};

/// Interleaving rows i and i + n/2 is a perfect shuffle of the block; log2(n) of them transpose it.
template <class T>
inline Block<T> transposed(Block<T> block) {
  constexpr int n = Block<T>::kSize;
  typename Block<T>::Indices low, high;
#pragma GCC unroll 16  // the registers are known only once all loops over them are gone
  for (int i = 0; i < n; ++i) {
    low[i] = static_cast<T>(i / 2 + (i % 2) * n);
    high[i] = static_cast<T>(n / 2 + i / 2 + (i % 2) * n);
  }
#pragma GCC unroll 4
  for (int stage = n; stage > 1; stage /= 2) {
    Block<T> next;
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next.row[2 * i] = __builtin_shuffle(block.row[i], block.row[i + n / 2], low);
      next.row[2 * i + 1] = __builtin_shuffle(block.row[i], block.row[i + n / 2], high);
    }
    block = next;
  }
  return block;
}

template <class T>
constexpr int64_t kPerLine = 64 / sizeof(T);

/// A square of one cache line's elements a side: whole lines are read, whole lines are written.
template <class T>
inline void transpose_tile(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int n = Block<T>::kSize;
  for (int r = 0; r < kPerLine<T>; r += n) {
    for (int c = 0; c < kPerLine<T>; c += n) {
      Block<T> block;
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) std::memcpy(&block.row[i], from + (c + i) * from_stride + r, 16);
      block = transposed(block);
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) std::memcpy(to + (r + i) * to_stride + c, &block.row[i], 16);
    }
  }
}

template <class T>
void transpose_edge(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to,
                    int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      std::memcpy(to + r * to_stride + c, from + c * from_stride + r, sizeof(T));
}

/// Each source column lies on pages of its own, where the hardware does not look ahead.
template <class T>
inline void prefetch_tile(const T* from, int64_t from_stride) {
  for (int64_t c = 0; c < kPerLine<T>; ++c) __builtin_prefetch(from + c * from_stride);
}

}  // namespace

template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to, int64_t to_stride) {
  constexpr int64_t side = kPerLine<T>;
  // Several lines of a column while its page is at hand; more would push the rows written out of L1.
  constexpr int64_t kLinesPerVisit = 4;
  const int64_t whole_rows = rows / side * side;
  const int64_t whole_cols = cols / side * side;
  for (int64_t strip = 0; strip < whole_rows; strip += kLinesPerVisit * side) {
    const int64_t strip_end = std::min(whole_rows, strip + kLinesPerVisit * side);
    for (int64_t c = 0; c < whole_cols; c += side) {
      for (int64_t r = strip; r < strip_end; r += side) {
        if (c + side < whole_cols) prefetch_tile(from + (c + side) * from_stride + r, from_stride);
        transpose_tile(from + c * from_stride + r, from_stride, to + r * to_stride + c, to_stride);
      }
    }
  }
  transpose_edge(from + whole_cols * from_stride, from_stride, whole_rows, cols - whole_cols, to + whole_cols,
                 to_stride);
  transpose_edge(from + whole_rows, from_stride, rows - whole_rows, cols, to + whole_rows * to_stride,
                 to_stride);
}

template void transpose(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*, int64_t);
template void transpose(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*, int64_t);
template void transpose(const uint32_t*, int64_t, int64_t, int64_t, uint32_t*, int64_t);

}  // namespace quantaria::ops
