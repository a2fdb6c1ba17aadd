#include "ops/dequant_matmul/bytes.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

constexpr int kTiles = 2;

/// Few rows: codes are split into bytes in a register and used there; int32 sums inside a group.
template <int bits, int rows>
void multiply(const TileView* tiles, const Span& span, const FewRowsInput& input, float* c) {
  using U = Unit<bits>;
  constexpr int kSteps = U::kCodes / 4;
  constexpr int kTurns = rows < 3 ? 2 : 1;
  const int32_t* x = static_cast<const int32_t*>(input.x);
  const auto zero = static_cast<int32_t>(-span.table[0]);
  const uint32_t* words[kTiles];
  __m512 total[rows][kTiles];
#pragma GCC unroll 4
  for (int t = 0; t < kTiles; ++t) {
    words[t] = tiles[t].words;
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
      total[r][t] = input.accumulate ? _mm512_loadu_ps(c + (r * kTiles + t) * kLanes) : _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < span.groups; ++g) {
    __m512i sum[rows][kTiles][kTurns];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        // One zero point for all is taken off in integers.
        sum[r][t][0] = _mm512_set1_epi32(-zero * static_cast<int32_t>(input.sums[g * rows + r]));
        if (kTurns == 2) sum[r][t][kTurns - 1] = _mm512_setzero_si512();
      }
    for (int64_t u = 0; u < span.units_per_group; ++u, x += kSteps * rows) {
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        Ints unit[U::kWords];
        load_unit<bits>(words[t], unit);
        prefetch_unit(words[t]);
        words[t] += U::kWords * kLanes;
#pragma GCC unroll 8
        for (int j = 0; j < kSteps; ++j) {
          const auto codes = reinterpret_cast<__m512i>(bytes_of<bits>(unit, j).part[0]);
#pragma GCC unroll 4
          for (int r = 0; r < rows; ++r)
            sum[r][t][j % kTurns] =
                _mm512_dpbusd_epi32(sum[r][t][j % kTurns], codes, _mm512_set1_epi32(x[j * rows + r]));
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
      const auto scale = reinterpret_cast<__m512>(scales_of(tiles[t], g).part[0]);
      prefetch_scales(tiles[t], g);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        __m512i group = sum[r][t][0];
        if (kTurns == 2) group = _mm512_add_epi32(group, sum[r][t][kTurns - 1]);
        __m512 plain = _mm512_cvtepi32_ps(group);
        if (tiles[t].zeros != nullptr)
          plain = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(tiles[t].zeros + g * kLanes)),
                                   _mm512_set1_ps(input.sums[g * rows + r]), plain);
        const __m512 scaled = _mm512_mul_ps(plain, _mm512_set1_ps(input.scales[g * rows + r]));
        total[r][t] = _mm512_fmadd_ps(scaled, scale, total[r][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(c + (r * kTiles + t) * kLanes, total[r][t]);
}

template <int rows>
constexpr void fill(FewByteRows& k) {
  FewRows*(&by_bits)[kMostBits + 1] = k.multiply[rows - 1];
  by_bits[2] = multiply<2, rows>;
  by_bits[3] = multiply<3, rows>;
  by_bits[4] = multiply<4, rows>;
  by_bits[8] = multiply<8, rows>;
}

constexpr FewByteRows kernels() {
  FewByteRows k{};
  fill<1>(k);
  fill<2>(k);
  fill<3>(k);
  fill<4>(k);
  return k;
}

}  // namespace

extern const FewByteRows few_byte_rows;
const FewByteRows few_byte_rows = kernels();

}  // namespace quantaria::ops::QUANTARIA_ISA
