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

/// Elements of a run that a tile asks for in advance: what a panel has.
constexpr int64_t kAhead = kDepthRun * kPanelCols;

/// c += alpha a b for kStrips strips and kTileCols columns of a panel. On the way, kAhead elements from
/// `ahead` on are asked for.
template <int kStrips>
QUANTARIA_LANES void tile(int64_t depth, float alpha, const float* a, int64_t a_apart, const float* b,
                          const float* ahead, float* c, int64_t c_apart) {
  Floats sum[kStrips][kTileCols] = {};
  for (int64_t k = 0; k < depth; ++k, a += kStripRows, b += kPanelCols) {
    __builtin_prefetch(ahead + k * kPanelCols, 0, 2);
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

/// What the next run reads, in pieces of kAhead elements: its panels, then its strips.
struct NextRun {
  const float* panels;
  int64_t panels_apart;
  int64_t panel_count;
  const float* strips;
  int64_t strips_apart;
  int64_t strip_count;
  int64_t piece = 0;

  const float* next() {
    constexpr int64_t kPerStrip = kStripRows / kPanelCols;
    int64_t at = piece++;
    if (at < panel_count) return panels + at * panels_apart;
    at -= panel_count;
    if (at < strip_count * kPerStrip) return strips + at / kPerStrip * strips_apart + at % kPerStrip * kAhead;
    return panels;
  }
};

template <int kStrips>
void panels(int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart, const float* b,
            int64_t b_apart, NextRun& ahead, float* c, int64_t c_apart) {
  for (int64_t first = 0; first < cols; first += kPanelCols, b += b_apart)
    for (int64_t j = 0; j < kPanelCols; j += kTileCols)
      tile<kStrips>(depth, alpha, a, a_apart, b + j, ahead.next(), c + (first + j) * kStripRows, c_apart);
}

}  // namespace

void strip_product(int64_t strips, int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart,
                   const float* b, int64_t b_apart, float* c, int64_t c_apart) {
  for (int64_t k = 0; k < depth; k += kDepthRun) {
    const int64_t run = depth - k < kDepthRun ? depth - k : kDepthRun;
    const float* const right = b + k * kPanelCols;
    const int64_t next = k + kDepthRun < depth ? kDepthRun : 0;
    NextRun ahead{right + next * kPanelCols,   b_apart, (cols + kPanelCols - 1) / kPanelCols,
                  a + (k + next) * kStripRows, a_apart, strips};
    int64_t s = 0;
    for (; s + kTileStrips <= strips; s += kTileStrips)
      panels<kTileStrips>(run, cols, alpha, a + s * a_apart + k * kStripRows, a_apart, right, b_apart, ahead,
                          c + s * c_apart, c_apart);
    for (; s < strips; ++s)
      panels<1>(run, cols, alpha, a + s * a_apart + k * kStripRows, a_apart, right, b_apart, ahead,
                c + s * c_apart, c_apart);
  }
}

}  // namespace quantaria::ops::QUANTARIA_ISA
