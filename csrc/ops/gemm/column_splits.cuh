#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/arrivals.h"
#include "cuda/grid.h"
#include "simt/simt.h"

/// The columns of the factors of a product with too few tiles for a GPU, shared out between blocks: each
/// leaves its sums in global memory, and the last one to come, whichever that is, adds all of them up in the
/// order of the columns, so that the bits do not depend on who was last. Nobody waits for anybody: blocks
/// need not run at the same time, and a second launch, which would cost as much as a tenth of such a product,
/// is not needed.
namespace quantaria::ops {

/// How many blocks share a tile, and the bytes of the sums that they leave.
struct ColumnShares {
  int splits;
  int64_t bytes;
};

/// As many shares as make the product take the fewest steps on multiprocessors that hold BlocksEach blocks at
/// once: a tile a block leaves most of them idle where tiles are few, and again at the end where there are a
/// few more tiles than fit. Filling its stages costs a block half of `least_steps`, a share's sums as much
/// again; a share makes no fewer steps than both, and less than a sixth saved is not worth the way through
/// memory. Of equals the most where all run at once, as more blocks hide more, and else the fewest, whose
/// sums are the least to write. By the shape alone, so that the order of the sums depends on nothing else.
template <int BlocksEach>
ColumnShares column_shares(int64_t tiles, int64_t tile_elements, int64_t steps, int64_t least_steps) {
  constexpr int64_t kBlocks = cuda::kMultiprocessors * BlocksEach;
  constexpr int64_t kMostSplits = 16;
  const auto parts = [](int64_t all, int64_t each) { return (all + each - 1) / each; };
  const auto half_steps = [&](int64_t splits, int64_t fixed) {
    return parts(tiles * splits, kBlocks) * (2 * parts(steps, splits) + fixed);
  };
  const int64_t most = tiles > cuda::kArrivalCounters ? 1 : std::min(kMostSplits, steps / least_steps);
  const int64_t alone = half_steps(1, least_steps);
  int64_t splits = 1;
  int64_t fewest = alone;
  for (int64_t s = 2; s <= most; ++s) {
    const int64_t taken = half_steps(s, 2 * least_steps);
    const bool better = taken < fewest || (taken == fewest && tiles * s <= kBlocks);
    if (!better || 6 * taken >= 5 * alone) continue;
    splits = s;
    fewest = taken;
  }
  return {static_cast<int>(splits), splits > 1 ? splits * tiles * tile_elements * int64_t{sizeof(float)} : 0};
}

struct ColumnSplits {
  float4* sums;  // [splits, tiles, fragments of a thread, threads]; null: the columns are not shared out
  unsigned* arrivals;  // [tiles], all 0 before the launch and after it
};

/// Of the threads of a block, whose tile is blockIdx.x and whose share of the columns blockIdx.y: true for
/// those of the tile's last block, whose `total` is then that of all columns. `unfinished` lies in shared
/// memory.
template <int Rows, int Cols>
__device__ __forceinline__ bool add_splits(const ColumnSplits& p, bool& unfinished,
                                           float (&total)[Rows][Cols][4]) {
  constexpr int kFragments = Rows * Cols;
  const int64_t tile = int64_t{blockIdx.x} * kFragments * blockDim.x + threadIdx.x;
  const int64_t apart = int64_t{gridDim.x} * kFragments * blockDim.x;
  float4* const own = p.sums + blockIdx.y * apart + tile;
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const auto& t = total[f / Cols][f % Cols];
    simt::store(own + int64_t{f} * blockDim.x, float4{t[0], t[1], t[2], t[3]});
  }
  __syncthreads();  // one thread speaks for all: their sums are there
  if (threadIdx.x == 0) unfinished = !simt::last_to_arrive(p.arrivals + blockIdx.x, gridDim.y);
  __syncthreads();  // all know it, and see what that thread sees
  if (unfinished) return false;
  for (auto& row : total)
    for (auto& fragment : row)
      for (float& sum : fragment) sum = 0;
  // Several reads under way at once: one by one, the last block would wait for memory as often as there are
  // splits.
  [[maybe_unused]] constexpr int kAtOnce = kFragments < 8 ? 8 / kFragments : 1;
  const float4* from = p.sums + tile;
#pragma unroll kAtOnce
  for (unsigned s = 0; s < gridDim.y; ++s, from += apart) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const auto part = simt::load(from + int64_t{f} * blockDim.x);
      auto& sum = total[f / Cols][f % Cols];
      sum[0] += part.x;
      sum[1] += part.y;
      sum[2] += part.z;
      sum[3] += part.w;
    }
  }
  return true;
}

}  // namespace quantaria::ops
