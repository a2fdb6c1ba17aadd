#include <utility>

#include "cpu/lanes.h"
#include "ops/gemm/tile.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// Rows x columns of a tile: as many sums as the registers hold beside one step of B and a broadcast of A.
// Long tiles, as each row costs a broadcast and each vector of columns a load.
#if defined(__AVX512F__)
constexpr int kRows = 12, kVectors = 2;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kRows = 6, kVectors = 1;  // 12 of 16, as a vector of lanes is two registers
#else
constexpr int kRows = 2, kVectors = 1;
#endif
constexpr int kColumns = kVectors * kLanes;

template <int rows>
void multiply(int64_t steps, const void* a_panel, const void* b_panel, float* c, bool accumulate) {
  const float* a = static_cast<const float*>(a_panel);
  const float* b = static_cast<const float*>(b_panel);
  Floats sum[rows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = accumulate ? load(c + r * kColumns + v * kLanes) : splat(0.0f);
  for (int64_t s = 0; s < steps; ++s, a += rows, b += kColumns) {
    Floats column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Floats x = splat(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(x, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(c + r * kColumns + v * kLanes, sum[r][v]);
}

template <int... i>
constexpr FloatTiles tiles_of(std::integer_sequence<int, i...>) {
  return {Operand::float32, kRows, kColumns, {multiply<i + 1>...}};
}

}  // namespace

extern const FloatTiles float32_tiles;
const FloatTiles float32_tiles = tiles_of(std::make_integer_sequence<int, kRows>());

}  // namespace quantaria::ops::QUANTARIA_ISA
