#pragma once

#include "simt/emulator/async_copies.h"
#include "simt/host/memory.h"

/// Asynchronous copies from global to shared memory. The names are those of simt/cuda/async_copy.h.
namespace quantaria::simt {

/// Begins to copy Bytes (4, 8 or 16, both sides aligned to them); writes zeros instead, without reading, if
/// not `wanted`.
template <int Bytes>
void cp_async(void* to_shared, const void* from_global, bool wanted = true,
              const Site& site = Site::current()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulator::require_aligned(to_shared, Bytes, "cp.async target", site);
  if (wanted) {
    emulator::require_aligned(from_global, Bytes, "cp.async source", site);
    emulator::require_global(from_global, Bytes, "cp.async source", site);
  }
  emulator::begin_copy(to_shared, from_global, Bytes, wanted, site);
}

/// Closes this thread's group of the copies begun since the last one.
inline void cp_async_commit() { emulator::commit_copies(); }

/// Waits until at most the Pending youngest groups of this thread are under way.
template <int Pending>
void cp_async_wait(const Site& site = Site::current()) {
  static_assert(Pending >= 0);
  emulator::wait_for_copies(Pending, site);
}

}  // namespace quantaria::simt
