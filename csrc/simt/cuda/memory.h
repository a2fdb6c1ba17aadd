#pragma once

#include <cstddef>
#include <cstdint>

/// Shared and global memory. The names are those of simt/host/memory.h.
namespace quantaria::simt {

extern __shared__ __align__(128) unsigned char shared_bytes[];

/// The block's shared memory; launch() is given sizeof(Layout) bytes of it. Undefined at the block's start.
template <class Layout>
__device__ __forceinline__ Layout& shared() {
  return *reinterpret_cast<Layout*>(shared_bytes);
}

/// The address that PTX takes for a place in shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

/// Reads a whole T from global memory, which is aligned to it.
template <class T>
__device__ __forceinline__ T load(const T* from) {
  return *from;
}

template <class T>
__device__ __forceinline__ void store(T* to, const T& value) {
  *to = value;
}

/// Reads a whole T from shared memory, which is aligned to it, whatever type lies there.
template <class T>
__device__ __forceinline__ T load_shared(const void* from) {
  return *static_cast<const T*>(from);
}

}  // namespace quantaria::simt
