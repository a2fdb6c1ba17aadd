#include <immintrin.h>

#include "ops/gemm/dots.h"

namespace quantaria::ops::avx512bf16 {
namespace {

// As for float32 (dots_isa.cc), two values at a time.

constexpr int kPairs = 32;  // values of a register
constexpr int kColumns = 4;
constexpr int64_t kAhead = 2048;  // 4 KiB

__m512bh pairs(const uint16_t* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

template <int rows, int columns>
void multiply_columns(const void* const* a, const uint16_t* b, int64_t stride, int64_t depth, float* c,
                      int64_t c_stride) {
  const auto row = [&](int r) { return static_cast<const uint16_t*>(a[r]); };
  __m512 sum[rows][columns];
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) sum[r][n] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + kPairs <= depth; k += kPairs) {
    const int64_t ahead = k + kAhead < depth ? k + kAhead : k + kAhead - depth + columns * stride;
#pragma GCC unroll 4
    for (int n = 0; n < columns; ++n) {
      __builtin_prefetch(b + n * stride + ahead, 0, 2);
      const __m512bh value = pairs(b + n * stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], pairs(row(r) + k), value);
    }
  }
  const auto rest = static_cast<__mmask32>((uint64_t{1} << (depth - k)) - 1);
  for (int n = 0; n < columns && k < depth; ++n) {
    const auto value = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(rest, b + n * stride + k));
    for (int r = 0; r < rows; ++r) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], pairs(row(r) + k), value);
  }
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) c[r * c_stride + n] = _mm512_reduce_add_ps(sum[r][n]);
}

template <int rows>
void multiply(const void* const* a, const std::byte* b, int64_t stride, int64_t depth, int64_t columns,
              float* c, int64_t c_stride) {
  const auto* column = reinterpret_cast<const uint16_t*>(b);
  int64_t n = 0;
  for (; n + kColumns <= columns; n += kColumns)
    multiply_columns<rows, kColumns>(a, column + n * stride, stride, depth, c + n, c_stride);
  for (; n < columns; ++n) multiply_columns<rows, 1>(a, column + n * stride, stride, depth, c + n, c_stride);
}

// Of matrices whose rows are contiguous, as for float32.
constexpr int kLanes = 16;
constexpr int kWidth = 2 * kLanes;
constexpr int kDeep = 4;
constexpr int kRowsAhead = 192;

/// `count` columns next to each other, kWidth at most.
template <int rows>
void multiply_strip(const void* const* a, const uint16_t* b, int64_t stride, int64_t depth, int64_t count,
                    float* c, int64_t c_stride) {
  __m512 sum[kLanes][rows][2];
  for (auto& lane : sum)
    for (auto& row : lane) row[0] = row[1] = _mm512_setzero_ps();
  const auto take = [&](int64_t k, int deep, const auto& get) {
    for (int lane = 0; lane < kLanes; ++lane) {
      __m512 part[rows][2];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) part[r][v] = sum[lane][r][v];
#pragma GCC unroll 4
      for (int d = 0; d < deep; ++d) {
        const int64_t at = k + d * kPairs + 2 * lane;
        const __m512i even = get(at);
        const __m512i odd = get(at + 1);
        // Columns 0-3, 8-11 ... and 4-7, 12-15 ...
        const __m512i value[2] = {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          const __m512i x = _mm512_set1_epi32(static_cast<const int32_t*>(a[r])[at / 2]);
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v)
            part[r][v] = _mm512_dpbf16_ps(part[r][v], reinterpret_cast<__m512bh>(x),
                                          reinterpret_cast<__m512bh>(value[v]));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) sum[lane][r][v] = part[r][v];
    }
  };
  const auto wanted = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  int64_t k = 0;
  for (; k + kDeep * kPairs <= depth; k += kDeep * kPairs)
    take(k, kDeep, [&](int64_t at) {
      const int64_t ahead =
          at + kRowsAhead < depth ? (at + kRowsAhead) * stride : (at + kRowsAhead - depth) * stride + count;
      __builtin_prefetch(b + ahead, 0, 2);
      return _mm512_maskz_loadu_epi16(wanted, b + at * stride);
    });
  for (; k < depth; k += kPairs)
    take(k, 1, [&](int64_t at) {
      return at < depth ? _mm512_maskz_loadu_epi16(wanted, b + at * stride) : _mm512_setzero_si512();
    });
  const __m512i in_order[2] = {
      _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23),
      _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31)};
  for (int r = 0; r < rows; ++r) {
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane)
        for (int v = 0; v < 2; ++v) sum[lane][r][v] = _mm512_add_ps(sum[lane][r][v], sum[lane + half][r][v]);
    for (int v = 0; v < 2; ++v)
      _mm512_mask_storeu_ps(c + r * c_stride + v * kLanes, static_cast<__mmask16>(wanted >> v * kLanes),
                            _mm512_permutex2var_ps(sum[0][r][0], in_order[v], sum[0][r][1]));
  }
}

template <int rows>
void multiply_rows(const void* const* a, const std::byte* b, int64_t stride, int64_t depth, int64_t columns,
                   float* c, int64_t c_stride) {
  const auto* const row = reinterpret_cast<const uint16_t*>(b);
  for (int64_t n = 0; n < columns; n += kWidth)
    multiply_strip<rows>(a, row + n, stride, depth, columns - n < kWidth ? columns - n : kWidth, c + n,
                         c_stride);
}

}  // namespace

extern const PairDots pair_dots;
const PairDots pair_dots = {{{multiply<1>, multiply<2>, multiply<3>, multiply<4>},
                             {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>}}};

}  // namespace quantaria::ops::avx512bf16
