#pragma once

#include "simt/simt.h"

namespace quantaria::ops {

/// What all threads of a block have, taken together: in a fixed order, so the same bits at every run. One
/// place for each reduction of a kernel, which is then free of a second barrier.
template <class T, int Threads>
struct BlockReduction {
  T of_warp[Threads / 32];
};

/// Every thread gets combine(...) of all values; combine is commutative.
template <class T, int Threads, class Combine>
__device__ __forceinline__ T reduce_block(BlockReduction<T, Threads>& shared, T value,
                                          const Combine& combine) {
  constexpr unsigned kAll = ~0u;
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value = combine(value, __shfl_xor_sync(kAll, value, apart));
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = value;
  __syncthreads();  // every warp has its own
  value = shared.of_warp[0];
#pragma unroll
  for (int w = 1; w < Threads / 32; ++w) value = combine(value, shared.of_warp[w]);
  return value;
}

template <int Threads>
__device__ __forceinline__ double sum_block(BlockReduction<double, Threads>& shared, double value) {
  return reduce_block(shared, value, [](double a, double b) { return a + b; });
}

}  // namespace quantaria::ops
