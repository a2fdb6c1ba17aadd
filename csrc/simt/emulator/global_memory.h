#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "core/allocator.h"
#include "simt/emulator/fault.h"

namespace quantaria::simt::emulator {

/// The memory of an emulated device: blocks that start out poisoned (NaN as any float), with guard bands
/// around them. May be used from several threads.
class GlobalMemory : public std::enable_shared_from_this<GlobalMemory> {
 public:
  /// A block of `bytes`, given back when its last owner goes. ERR_OUT_OF_MEMORY as HostAllocator.
  std::shared_ptr<std::byte> allocate(int64_t bytes);

  /// Whether all of it lies in one block.
  bool holds(const void* from, size_t bytes) const;

  /// Throws a Fault unless it does. In a kernel.
  void require_inside(const void* from, size_t bytes, const char* what, const Site& site) const;

  /// Throws a Fault if something was written around a block. Between launches.
  void require_intact() const;

  MemoryCounters counters() const { return host_->counters(); }

 private:
  mutable std::mutex mutex_;
  std::map<uintptr_t, size_t> blocks_;  // bytes by address
  std::shared_ptr<HostAllocator> host_ = std::make_shared<HostAllocator>();
};

}  // namespace quantaria::simt::emulator
