#include <immintrin.h>

#include <utility>

#include "ops/gemm/tile.h"

namespace quantaria::ops::avx512bf16 {
namespace {

constexpr int kRows = 12, kVectors = 2, kLanes = 16;
constexpr int kColumns = kVectors * kLanes;

/// A word of two bfloat16 in every lane.
__m512bh broadcast(const int32_t* pair) { return reinterpret_cast<__m512bh>(_mm512_set1_epi32(*pair)); }

template <int rows>
void multiply(int64_t steps, const void* a_panel, const void* b_panel, float* c, bool accumulate) {
  const int32_t* a = static_cast<const int32_t*>(a_panel);
  const int32_t* b = static_cast<const int32_t*>(b_panel);
  __m512 sum[rows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = accumulate ? _mm512_loadu_ps(c + r * kColumns + v * kLanes) : _mm512_setzero_ps();
  for (int64_t s = 0; s < steps; ++s, a += rows, b += kColumns) {
    __m512bh column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      column[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + v * kLanes));
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const __m512bh x = broadcast(a + r);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, column[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + r * kColumns + v * kLanes, sum[r][v]);
}

template <int... i>
constexpr FloatTiles tiles_of(std::integer_sequence<int, i...>) {
  return {Operand::bfloat16, kRows, kColumns, {multiply<i + 1>...}};
}

}  // namespace

extern const FloatTiles bfloat16_tiles;
const FloatTiles bfloat16_tiles = tiles_of(std::make_integer_sequence<int, kRows>());

}  // namespace quantaria::ops::avx512bf16
