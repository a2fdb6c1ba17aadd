#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/pages.h"

namespace quantaria {

struct MemoryCounters {
  int64_t live_bytes;    // handed out
  int64_t cached_bytes;  // kept for reuse
  int64_t live_blocks;
};

/// Host memory in 64-byte aligned blocks. Freed blocks are kept and handed out again: the first touch of a
/// fresh page costs several times what a kernel spends on it.
class HostAllocator : public std::enable_shared_from_this<HostAllocator> {
 public:
  /// Of more freed bytes than this the longest unused blocks go back to the system.
  static constexpr int64_t kMaxCachedBytes = int64_t{256} << 20;

  ~HostAllocator();

  /// A block of at least `bytes`, returned to this allocator when the last owner goes.
  /// Throws ERR_OUT_OF_MEMORY if the machine (or the control group) does not have that much left: Linux would
  /// promise it, and end the process at the first touch.
  std::shared_ptr<std::byte> allocate(int64_t bytes);

  MemoryCounters counters() const;

 private:
  /// Unused blocks with their memory, in the order in which they came back.
  struct Kept {
    int64_t capacity;
    std::byte* block;
  };
  using Line = std::list<Kept>;

  /// Throws ERR_OUT_OF_MEMORY unless the system has `capacity` more bytes.
  void require_fresh(int64_t bytes, int64_t capacity);
  void release(std::byte* block, int64_t capacity);
  std::byte* take_kept(int64_t capacity);
  std::byte* take_bare(int64_t capacity);
  std::optional<Kept> take_surplus();

  mutable std::mutex mutex_;
  Line kept_;
  std::map<int64_t, std::deque<Line::iterator>> by_capacity_;  // each in that order too
  std::map<int64_t, std::vector<std::byte*>> bare_;            // unused blocks without memory: addresses only
  Pages pages_;
  MemoryCounters counters_{};
  int64_t unchecked_ = 0;  // fresh bytes since the last look at the system
};

/// Bytes that can still be used without swapping, the smaller of the system's and the control group's.
int64_t available_memory();

/// Bytes of this process's own memory that it has touched: without files.
int64_t resident_memory();

/// Bytes that a process with these blocks can still take. Blocks that nobody has touched yet are not missing
/// from the system's free memory, but will be.
int64_t usable_memory(const MemoryCounters& counters);

/// Bytes of memory in this machine.
int64_t physical_memory();

}  // namespace quantaria
