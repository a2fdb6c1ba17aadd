#pragma once

#include <algorithm>
#include <cstdint>

#include "simt/simt.h"

namespace quantaria::cuda {

/// Of an A100. Tiles and shares are chosen for it on every GPU, so that all of them add up in one order.
inline constexpr int64_t kMultiprocessors = 108;

/// Blocks of a kernel whose threads go over `work` items in strides of the whole grid, `per_block` of them at
/// once: enough to fill any GPU, few enough that each has several rounds on a small one.
inline dim3 blocks_for(int64_t work, int64_t per_block) {
  constexpr int64_t kMostBlocks = 2048;
  return dim3(static_cast<unsigned>(std::clamp<int64_t>((work + per_block - 1) / per_block, 1, kMostBlocks)));
}

}  // namespace quantaria::cuda
