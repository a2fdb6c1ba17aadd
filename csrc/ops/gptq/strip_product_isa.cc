#include "ops/gptq/strip_product.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

/// Two strips of this depth fill half of the first-level cache and stay there while all panels pass.
constexpr int64_t kDepthRun = 128;

// Sums that the registers hold: two strips by eight columns with 32 registers of AVX-512; with 16 registers
// one strip by four columns (AVX2: two registers a strip) or by two (SSE2: four).
#if defined(__AVX512F__)
constexpr int kTileStrips = 2;
constexpr int kTileCols = 8;
#elif defined(__AVX2__)
constexpr int kTileStrips = 1;
constexpr int kTileCols = 4;
#else
constexpr int kTileStrips = 1;
constexpr int kTileCols = 2;
#endif

/// c += alpha a b for kStrips strips and kTileCols columns of a panel.
template <int kStrips>
QUANTARIA_LANES void tile(int64_t depth, float alpha, const float* a, int64_t a_apart, const float* b,
                          float* c, int64_t c_apart) {
  Floats sum[kStrips][kTileCols] = {};
  for (int64_t k = 0; k < depth; ++k, a += kStripRows, b += kPanelCols) {
    Floats left[kStrips];
    for (int s = 0; s < kStrips; ++s) left[s] = load(a + s * a_apart);
    for (int j = 0; j < kTileCols; ++j) {
      const Floats right = splat(b[j]);
      for (int s = 0; s < kStrips; ++s) sum[s][j] = multiply_add(left[s], right, sum[s][j]);
    }
  }
  for (int s = 0; s < kStrips; ++s)
    for (int j = 0; j < kTileCols; ++j) {
      float* const to = c + s * c_apart + j * kStripRows;
      store(to, multiply_add(splat(alpha), sum[s][j], load(to)));
    }
}

template <int kStrips>
void panels(int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart, const float* b,
            int64_t b_apart, float* c, int64_t c_apart) {
  for (int64_t first = 0; first < cols; first += kPanelCols, b += b_apart)
    for (int64_t j = 0; j < kPanelCols; j += kTileCols)
      tile<kStrips>(depth, alpha, a, a_apart, b + j, c + (first + j) * kStripRows, c_apart);
}

}  // namespace

void strip_product(int64_t strips, int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart,
                   const float* b, int64_t b_apart, float* c, int64_t c_apart) {
  for (int64_t k = 0; k < depth; k += kDepthRun) {
    const int64_t run = depth - k < kDepthRun ? depth - k : kDepthRun;
    const float* const right = b + k * kPanelCols;
    int64_t s = 0;
    for (; s + kTileStrips <= strips; s += kTileStrips)
      panels<kTileStrips>(run, cols, alpha, a + s * a_apart + k * kStripRows, a_apart, right, b_apart,
                          c + s * c_apart, c_apart);
    for (; s < strips; ++s)
      panels<1>(run, cols, alpha, a + s * a_apart + k * kStripRows, a_apart, right, b_apart, c + s * c_apart,
                c_apart);
  }
}

}  // namespace quantaria::ops::QUANTARIA_ISA
