#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simt/emulator/fault.h"
#include "simt/host/index.h"

/// Shared and global memory. The names are those of simt/cuda/memory.h.
namespace quantaria::simt {
namespace emulator {

/// The block's shared memory. A Fault if the launch gave fewer bytes.
void* shared_memory(size_t bytes, const Site& site);

/// A Fault unless `place` is a multiple of `alignment`.
void require_aligned(const void* place, size_t alignment, const char* what, const Site& site);

/// A Fault unless all of it lies in one block of the device's memory, if the launch knows it.
void require_global(const void* place, size_t bytes, const char* what, const Site& site);

/// A Fault unless all of it lies in the block's shared memory.
void require_shared(const void* place, size_t bytes, const char* what, const Site& site);

}  // namespace emulator

/// The block's shared memory; launch() is given sizeof(Layout) bytes of it. Undefined at the block's start:
/// poisoned.
template <class Layout>
Layout& shared(const Site& site = Site::current()) {
  return *static_cast<Layout*>(emulator::shared_memory(sizeof(Layout), site));
}

/// Reads a whole T from global memory, which is aligned to it.
template <class T>
T load(const T* from, const Site& site = Site::current()) {
  emulator::require_aligned(from, alignof(T), "load", site);
  emulator::require_global(from, sizeof(T), "load", site);
  return *from;
}

template <class T>
void store(T* to, const T& value, const Site& site = Site::current()) {
  emulator::require_aligned(to, alignof(T), "store", site);
  emulator::require_global(to, sizeof(T), "store", site);
  *to = value;
}

/// Reads a whole T from shared memory, which is aligned to it, whatever type lies there.
template <class T>
T load_shared(const void* from, const Site& site = Site::current()) {
  emulator::require_aligned(from, alignof(T), "shared load", site);
  emulator::require_shared(from, sizeof(T), "shared load", site);
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace quantaria::simt
