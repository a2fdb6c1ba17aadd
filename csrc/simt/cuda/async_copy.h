#pragma once

#include <cstdint>

#include "simt/cuda/memory.h"

/// Asynchronous copies from global to shared memory. The names are those of simt/host/async_copy.h.
namespace quantaria::simt {

/// Begins to copy Bytes (4, 8 or 16, both sides aligned to them); writes zeros instead, without reading, if
/// not `wanted`.
template <int Bytes>
__device__ __forceinline__ void cp_async(void* to_shared, const void* from_global, bool wanted = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const uint32_t to = shared_address(to_shared);
  const int read = wanted ? Bytes : 0;
  // .cg leaves out the first-level cache, which a tile that is read once has no use for; it exists for 16
  // bytes only.
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;"
                 :
                 : "r"(to), "l"(from_global), "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0],[%1],%2,%3;"
                 :
                 : "r"(to), "l"(from_global), "n"(Bytes), "r"(read)
                 : "memory");
}

/// Closes this thread's group of the copies begun since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most the Pending youngest groups of this thread are under way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace quantaria::simt
