#pragma once

#include <cstdint>

/// Barriers and locks beside those that CUDA C++ spells itself (__syncthreads, __syncwarp, shuffles, votes).
/// The names are those of simt/host/sync.h.
namespace quantaria::simt {

/// Waits at barrier Id (1 to 15; 0 is __syncthreads) until `threads` threads, whole warps, have come.
/// A template argument, as one that ptxas does not know makes it reserve all sixteen.
template <int Id>
__device__ __forceinline__ void barrier_wait(int threads) {
  asm volatile("bar.sync %0,%1;" ::"n"(Id), "r"(threads) : "memory");
}

/// Is counted at barrier Id and goes on.
template <int Id>
__device__ __forceinline__ void barrier_arrive(int threads) {
  asm volatile("bar.arrive %0,%1;" ::"n"(Id), "r"(threads) : "memory");
}

/// Reads a lock in global memory: what its last release_add came after is visible from here on.
__device__ __forceinline__ int load_acquire(const int* lock) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0,[%1];" : "=r"(value) : "l"(lock) : "memory");
  return value;
}

/// Adds to a lock in global memory once all that this thread wrote, and has seen written, is visible.
__device__ __forceinline__ void release_add(int* lock, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0],%1;" ::"l"(lock), "r"(value) : "memory");
}

/// Counts whoever comes, by a counter in global memory that is 0 before the first of `expected`. The last one
/// is told so, leaves 0 behind, and what the others wrote, or had seen written, is visible to it from here
/// on.
__device__ __forceinline__ bool last_to_arrive(unsigned* counter, unsigned expected) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0,[%1],%2;"
               : "=r"(before)
               : "l"(counter), "r"(expected - 1)
               : "memory");
  return before == expected - 1;
}

}  // namespace quantaria::simt
