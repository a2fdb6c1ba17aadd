#pragma once

#include "simt/simt.h"

/// Products in float32, tile by tile, that the kernels of GPTQ are made of: 64 x 64 by a block of 256
/// threads, 4 x 4 each.
namespace quantaria::ops {

constexpr int kProductTile = 64;
constexpr int kProductThreads = 256;
constexpr int kProductStep = 16;  // of k, in two halves of shared memory
/// Terms of a run. Runs are summed by themselves, so that rounding errors grow with the length of one and
/// their number, not with the depth.
constexpr int kProductRun = 128;

/// Four more a row keep vectors aligned and put the writes of neighbouring steps into different banks.
struct alignas(16) ProductSlab {
  float value[kProductStep][kProductTile + 4];
};

struct ProductSlabs {
  ProductSlab left[2];
  ProductSlab right[2];
};

/// Which of an operand's two indices neighbouring threads read along.
enum class Along { k, tile };

class TileProduct {
 public:
  __device__ explicit TileProduct(ProductSlabs& slabs) : slabs_(slabs) {}

  /// Adds the products left(row, k) right(k, col) of all k in [first, end); row and col are 0 .. 63. All
  /// threads of the block take part.
  template <Along LeftAlong, Along RightAlong, class Left, class Right>
  __device__ __forceinline__ void add(int64_t first, int64_t end, const Left& left, const Right& right) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int64_t begin = first; begin < end; begin += kProductRun) {
      const int64_t run_end = end - begin < kProductRun ? end : begin + kProductRun;
      float run[4][4] = {};
      for (int64_t k0 = begin; k0 < run_end; k0 += kProductStep, half_ ^= 1) {
        // Into the half that was read two steps ago: the barrier of the last step came after that.
        fetch<LeftAlong>(slabs_.left[half_], k0, run_end, left);
        fetch<RightAlong>(slabs_.right[half_], k0, run_end,
                          [&](int col, int64_t k) { return right(k, col); });
        __syncthreads();  // the half is there for all
#pragma unroll
        for (int step = 0; step < kProductStep; ++step) {
          const auto a = simt::load_shared<float4>(&slabs_.left[half_].value[step][thread / 16 * 4]);
          const auto b = simt::load_shared<float4>(&slabs_.right[half_].value[step][thread % 16 * 4]);
          const float rows[4] = {a.x, a.y, a.z, a.w};
          const float cols[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) run[i][j] = fmaf(rows[i], cols[j], run[i][j]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum_[i][j] += run[i][j];
    }
  }

  /// body(row, col, sum) for this thread's sixteen.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) body(thread / 16 * 4 + i, thread % 16 * 4 + j, sum_[i][j]);
  }

 private:
  template <Along Order, class Value>
  __device__ __forceinline__ static void fetch(ProductSlab& slab, int64_t k0, int64_t end,
                                               const Value& value) {
#pragma unroll
    for (int i = 0; i < kProductTile * kProductStep / kProductThreads; ++i) {
      const int place = i * kProductThreads + static_cast<int>(threadIdx.x);
      const int line = Order == Along::k ? place / kProductStep : place % kProductTile;
      const int step = Order == Along::k ? place % kProductStep : place / kProductTile;
      slab.value[step][line] = k0 + step < end ? value(line, k0 + step) : 0.0f;
    }
  }

  ProductSlabs& slabs_;
  int half_ = 0;
  float sum_[4][4] = {};
};

/// Tile (row, column), row <= column, of the upper triangle, by its number.
struct UpperTile {
  int64_t row;
  int64_t column;
};
__device__ __forceinline__ UpperTile upper_tile(int64_t number) {
  auto column = static_cast<int64_t>((sqrtf(8.0f * static_cast<float>(number) + 1.0f) - 1.0f) * 0.5f);
  while (column * (column + 1) / 2 > number) --column;
  while ((column + 1) * (column + 2) / 2 <= number) ++column;
  return {number - column * (column + 1) / 2, column};
}
constexpr int64_t upper_tiles(int64_t tiles) { return tiles * (tiles + 1) / 2; }

/// A launch's number of blocks in one dimension. ERR_UNSUPPORTED where CUDA has no such grid.
inline unsigned blocks_of(int64_t blocks) {
  if (blocks > 0x7fffffff)
    fail(ErrorCode::unsupported, "a launch of ", blocks, " blocks, at most 2^31 - 1 expected");
  return static_cast<unsigned>(blocks);
}

}  // namespace quantaria::ops
