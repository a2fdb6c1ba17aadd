#include "ops/quantize/cascade_mean.h"

#include <algorithm>
#include <array>
#include <bit>

namespace quantaria::ops {
namespace {

constexpr int kLanes = 8;
constexpr int kAccumulators = 4;
constexpr int kLevels = 4;

using Lanes = std::array<float, kLanes>;

void add(Lanes& to, const float* values) {
  for (size_t lane = 0; lane < kLanes; ++lane) to[lane] += values[lane];
}

/// Sums `rows` rows of kAccumulators x kLanes values, one accumulator for each position. Every 2^power rows a
/// level is folded into the next, so that no running sum grows far beyond what is added to it.
std::array<Lanes, kAccumulators> sum_rows(const float* values, int64_t rows) {
  const int ceil_log2 = rows > 1 ? std::bit_width(static_cast<uint64_t>(rows - 1)) : 0;
  const int power = std::max(4, ceil_log2 / kLevels);
  const int64_t step = int64_t{1} << power;
  std::array<std::array<Lanes, kAccumulators>, kLevels> levels{};
  const auto add_row = [&](int64_t row) {
    for (size_t k = 0; k < kAccumulators; ++k)
      add(levels[0][k], values + (row * kAccumulators + static_cast<int64_t>(k)) * kLanes);
  };
  int64_t row = 0;
  while (row + step <= rows) {
    for (int64_t end = row + step; row < end; ++row) add_row(row);
    for (size_t level = 1; level < kLevels; ++level) {
      for (size_t k = 0; k < kAccumulators; ++k) {
        add(levels[level][k], levels[level - 1][k].data());
        levels[level - 1][k] = {};
      }
      if ((row & ((step - 1) << (static_cast<int>(level) * power))) != 0) break;
    }
  }
  for (; row < rows; ++row) add_row(row);
  for (size_t level = 1; level < kLevels; ++level)
    for (size_t k = 0; k < kAccumulators; ++k) add(levels[0][k], levels[level][k].data());
  return levels[0];
}

}  // namespace

float cascade_mean(const float* values, int64_t count) {
  if (count == 0) return 0.0f;
  const int64_t vectors = count / kLanes;
  const int64_t rows = vectors / kAccumulators;
  std::array<Lanes, kAccumulators> sums = sum_rows(values, rows);
  for (int64_t v = rows * kAccumulators; v < vectors; ++v) add(sums[0], values + v * kLanes);
  for (size_t k = 1; k < kAccumulators; ++k) add(sums[0], sums[k].data());
  float total = 0.0f;
  for (int64_t i = vectors * kLanes; i < count; ++i) total += values[i];
  for (const float lane : sums[0]) total += lane;
  return total / static_cast<float>(count);
}

}  // namespace quantaria::ops
