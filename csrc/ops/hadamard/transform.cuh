#pragma once

#include <type_traits>
#include <vector>

#include "ops/copy/cast_value.cuh"
#include "ops/hadamard/base_orders.h"
#include "simt/simt.h"

/// The stages of a Hadamard transform, in the order of the CPU's, in registers and in shared memory.
namespace quantaria::ops {

inline constexpr int kHadamardThreads = 256;
inline constexpr int kTile = 256;             // elements that a warp transforms in its registers
inline constexpr int64_t kSharedRow = 16384;  // floats of a row that stay in shared memory

/// The signs of a base matrix: bit j of row i is set where the entry is -1.
struct BaseSigns {
  uint32_t row[kLargestBaseOrder][(kLargestBaseOrder + 31) / 32];
};
struct NoSigns {};

/// Rows of n = m * size elements, size a power of two, from one dtype to another.
struct Transform {
  int64_t rows;
  int n;
  int m;
  int size;
  float scale;
  const std::byte* x;
  DType x_dtype;
  std::byte* y;
  DType y_dtype;

  __device__ float load(int64_t i) const { return load_float(x_dtype, x, i); }
  __device__ void store(int64_t i, float value) const {
    store_value(y_dtype, y, i, {true, value * scale, 0});
  }
};

/// Count values `apart` from each other: all stages between them, the widest first.
template <int Count>
__device__ __forceinline__ void stages_between(float (&v)[Count]) {
#pragma unroll
  for (int apart = Count / 2; apart > 0; apart /= 2)
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if ((i & apart) != 0) continue;
      const float sum = v[i] + v[i + apart];
      v[i + apart] = v[i] - v[i + apart];
      v[i] = sum;
    }
}

/// A stage between lanes: the sum in the lower one, the difference in the upper one.
template <int Count>
__device__ __forceinline__ void stage_of_lanes(int lane, int apart, float (&v)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float other = __shfl_xor_sync(~0u, v[i], apart);
    v[i] = (lane & apart) != 0 ? other - v[i] : other + v[i];
  }
}

/// Stages of `size` and less (up to kTile) of kTile elements, element i * 32 + lane in v[i]: from the widest
/// to 16 apart, then 1, 2, 4 and 8, as on the CPU.
__device__ __forceinline__ void transform_tile(int lane, int size, float (&v)[kTile / 32]) {
#pragma unroll
  for (int apart = 4; apart > 0; apart /= 2) {
    if (size <= apart * 32) continue;
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      if ((i & apart) != 0) continue;
      const float sum = v[i] + v[i + apart];
      v[i + apart] = v[i] - v[i + apart];
      v[i] = sum;
    }
  }
  if (size > 16) stage_of_lanes(lane, 16, v);
  for (int apart = 1; apart < 16 && apart < size; apart *= 2) stage_of_lanes(lane, apart, v);
}

/// Element (i, e) of the base matrix times blocks: the sum over j of +-value(j * size + e), in order.
template <class Value>
__device__ __forceinline__ float base_sum(const uint32_t* signs, int m, int64_t size, int64_t e,
                                          const Value& value) {
  float sum = 0;
  for (int j = 0; j < m; ++j) {
    const float v = value(j * size + e);
    sum = (signs[j / 32] >> j % 32 & 1) != 0 ? sum - v : sum + v;
  }
  return sum;
}

/// One pass over a row in shared memory: Count values for each thread, `apart` from each other.
template <int Count>
__device__ inline void pass(float* row, int n, int apart) {
  for (int i = static_cast<int>(threadIdx.x); i < n / Count; i += kHadamardThreads) {
    float* const first = row + i / apart * apart * Count + i % apart;
    float v[Count];
#pragma unroll
    for (int k = 0; k < Count; ++k) v[k] = first[k * apart];
    stages_between(v);
#pragma unroll
    for (int k = 0; k < Count; ++k) first[k * apart] = v[k];
  }
  __syncthreads();  // the pass is done for all
}

template <int Capacity, bool Based>
struct RowShared {
  float row[Capacity];
  float given[Based ? Capacity : 1];
};

/// The transform of the row from element `start` on by a block, in shared memory from its first stage to its
/// last: store(i, value) for each element, not scaled, by the thread that may write row[i].
template <int Capacity, bool Based, class Store>
__device__ __forceinline__ void transform_in_shared(const Transform& p,
                                                    const std::conditional_t<Based, BaseSigns, NoSigns>& base,
                                                    int64_t start, RowShared<Capacity, Based>& shared,
                                                    const Store& store) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < p.n; i += kHadamardThreads) {
    if constexpr (Based)
      shared.given[i] = p.load(start + i);
    else
      shared.row[i] = p.load(start + i);
  }
  // Without a base matrix the first pass gives each thread what it has put there itself. The tiles do not.
  if constexpr (Based) {
    __syncthreads();  // the row is there for all
    for (int i = thread; i < p.n; i += kHadamardThreads)
      shared.row[i] = base_sum(base.row[i / p.size], p.m, p.size, i % p.size,
                               [&](int64_t at) { return shared.given[at]; });
    __syncthreads();  // the products with the base matrix are there for all
  } else if (p.size <= kTile) {
    __syncthreads();  // the row is there for all
  }
  int size = p.size;
  for (; size >= 8 * kTile; size /= 8) pass<8>(shared.row, p.n, size / 8);
  if (size == 4 * kTile) pass<4>(shared.row, p.n, size / 4);
  if (size == 2 * kTile) pass<2>(shared.row, p.n, size / 2);
  const int lane = thread % 32;
  for (int first = thread / 32 * kTile; first < p.n; first += kHadamardThreads / 32 * kTile) {
    float v[kTile / 32];
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int at = first + i * 32 + lane;
      v[i] = at < p.n ? shared.row[at] : 0.0f;
    }
    transform_tile(lane, size > kTile ? kTile : size, v);
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int at = first + i * 32 + lane;
      if (at < p.n) store(at, v[i]);
    }
  }
}

inline BaseSigns signs_of(int64_t m) {
  const std::vector<int8_t> matrix = base_matrix(m);
  BaseSigns signs{};
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j)
      if (matrix[static_cast<size_t>(i * m + j)] < 0) signs.row[i][j / 32] |= 1u << j % 32;
  return signs;
}

}  // namespace quantaria::ops
