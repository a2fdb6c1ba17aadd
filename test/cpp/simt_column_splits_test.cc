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

TEST("columns are shared out where tiles leave multiprocessors idle, and nowhere else") {
  const auto splits = [](int64_t tiles, int64_t steps) {
    return ops::column_shares<4>(tiles, 1024, steps, 4).splits;  // 432 blocks at once
  };
  CHECK_EQ(splits(64, 32), 6);      // 384 blocks
  CHECK_EQ(splits(216, 64), 2);     // all of them
  CHECK_EQ(splits(432, 64), 1);     // all of them already
  CHECK_EQ(splits(448, 64), 4);     // one tile in 28 would otherwise come when all others have gone
  CHECK_EQ(splits(840, 64), 1);     // hardly any idle at the end
  CHECK_EQ(splits(1, 1000), 16);    // the most
  CHECK_EQ(splits(1, 7), 1);        // too short to share
  CHECK_EQ(splits(1025, 1000), 1);  // more than a device has counters
  CHECK_EQ(splits(0, 64), 1);
  // Two shares at once take as many steps as five, three at once and two after them.
  CHECK_EQ(ops::column_shares<5>(208, 1, 80, 8).splits, 2);
  CHECK_EQ(ops::column_shares<4>(64, 1024, 32, 4).bytes, int64_t{6 * 64 * 1024 * 4});
  CHECK_EQ(ops::column_shares<4>(432, 1024, 64, 4).bytes, int64_t{0});
}

}  // namespace
