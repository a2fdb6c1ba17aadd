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

template <int rows>
void multiply_rows(const void* const* a, const std::byte* b, int64_t stride, int64_t depth, int64_t columns,
                   float* c, int64_t c_stride) {
  constexpr int kLanes = 16;
  for (int64_t n = 0; n < columns; n += kLanes) {
    const int64_t count = columns - n < kLanes ? columns - n : kLanes;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const uint16_t* const first = reinterpret_cast<const uint16_t*>(b) + n;
    const auto get = [&](int64_t k) {
      return k < depth ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first + k * stride))
                       : _mm512_setzero_si512();
    };
    for (int r = 0; r < rows; ++r) {
      const auto* const x = static_cast<const int32_t*>(a[r]);
      __m512 sum[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) sum[lane] = _mm512_setzero_ps();
      for (int64_t k = 0; k < depth; k += kPairs)
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) {
          const int64_t at = k + 2 * lane;
          const __m512i pair = _mm512_or_si512(get(at), _mm512_slli_epi32(get(at + 1), 16));
          sum[lane] = _mm512_dpbf16_ps(sum[lane], reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[at / 2])),
                                       reinterpret_cast<__m512bh>(pair));
        }
#pragma GCC unroll 4
      for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int lane = 0; lane < half; ++lane) sum[lane] = _mm512_add_ps(sum[lane], sum[lane + half]);
      _mm512_mask_storeu_ps(c + r * c_stride + n, mask, sum[0]);
    }
  }
}

}  // namespace

extern const PairDots pair_dots;
const PairDots pair_dots = {{{multiply<1>, multiply<2>, multiply<3>, multiply<4>},
                             {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>}}};

}  // namespace quantaria::ops::avx512bf16
