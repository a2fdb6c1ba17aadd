#include <algorithm>
#include <limits>
#include <vector>

#include "check.h"
#include "ops/gemm/column_splits.cuh"
#include "simt_test.h"

// Sums of blocks that share a tile: added up by whichever of them comes last, in the order of the blocks.
namespace {

using namespace quantaria;
using namespace quantaria::test;

constexpr int kTiles = 3;
constexpr int kSplits = 5;
constexpr int kThreads = 128;
constexpr int kFragments = 2;

/// Terms whose sum in any other order than the blocks' has other bits.
float term(int tile, int split, int fragment, int thread, int e) {
  constexpr float kScale[kSplits] = {1e8f, 1.0f, -1e8f, 3e-4f, 7e5f};
  return kScale[split] * static_cast<float>(1 + (tile + 3 * fragment + 5 * thread + 7 * e) % 13);
}

struct Shared {
  bool unfinished;
};

__global__ void leave_sums(ops::ColumnSplits splits, float* y) {
  const int tile = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  // Warps come at very different times, in each block others.
  for (unsigned i = 0; i < (thread / 32 * 5 + blockIdx.y * 3) % 11 * 4; ++i) __shfl_xor_sync(~0u, 0, 1);
  float total[1][kFragments][4];
  for (int f = 0; f < kFragments; ++f)
    for (int e = 0; e < 4; ++e) total[0][f][e] = term(tile, static_cast<int>(blockIdx.y), f, thread, e);
  if (!ops::add_splits(splits, simt::shared<Shared>().unfinished, total)) return;
  for (int f = 0; f < kFragments; ++f)
    for (int e = 0; e < 4; ++e) y[((tile * kFragments + f) * kThreads + thread) * 4 + e] = total[0][f][e];
}

bool sums_are_right() {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<unsigned> arrivals(kTiles);
  for (int round = 0; round < 2; ++round) {  // the counters serve the next launch as they are left
    std::vector<float4> sums(kSplits * kTiles * kFragments * kThreads, float4{kNan, kNan, kNan, kNan});
    std::vector<float> y(kTiles * kFragments * kThreads * 4, kNan);
    simt::launch(leave_sums, dim3(kTiles, kSplits), dim3(kThreads), sizeof(Shared), {},
                 ops::ColumnSplits{sums.data(), arrivals.data()}, y.data());
    for (size_t i = 0; i < y.size(); ++i) {
      const auto place = static_cast<int>(i) / 4;
      float expected = 0;
      for (int split = 0; split < kSplits; ++split)
        expected += term(place / kThreads / kFragments, split, place / kThreads % kFragments,
                         place % kThreads, static_cast<int>(i % 4));
      if (y[i] != expected) return false;
    }
  }
  return std::all_of(arrivals.begin(), arrivals.end(), [](unsigned count) { return count == 0; });
}

TEST("simt: sums of blocks are added up in the order of blocks, whoever comes last; it needs each barrier") {
  for (const int resident : {1, 4, kSplits * kTiles})
    require_right(__FILE__, __LINE__, every_order(2, resident), sums_are_right);
  require_each_sync(__FILE__, __LINE__, {sums_are_right}, every_order(2, kSplits), {"column_splits.cuh"});
}

}  // namespace
