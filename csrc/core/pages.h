#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

namespace quantaria {

/// Where the host allocator's blocks come from: the system, on 2 MiB pages where a block is long enough to
/// profit. With 4 KiB pages every stretch of 4 KiB costs a walk through the page tables (in a virtual machine
/// through two sets of them) and stops the prefetchers: reading is slower by a third and more.
class Pages {
 public:
  /// Blocks from here on are carved out of slabs: each alone would touch a large page that it fills partly.
  static constexpr int64_t kSmallestCarved = int64_t{64} << 10;
  /// Blocks from here on have large pages of their own.
  static constexpr int64_t kSmallestAlone = int64_t{16} << 20;

  /// `capacity` fresh bytes, a multiple of 64, aligned to 64; null if the system has no such range.
  std::byte* take(int64_t capacity);

  /// Gives a block's memory back to the system. True if the block itself is gone too; otherwise its addresses
  /// stay good, as fresh memory.
  bool give_back(std::byte* block, int64_t capacity);

 private:
  struct Free {
    void operator()(std::byte* block) const { std::free(block); }
  };

  std::byte* carve(int64_t capacity);

  std::mutex mutex_;
  std::vector<std::unique_ptr<std::byte, Free>> slabs_;
  std::byte* rest_ = nullptr;  // of the last slab
  int64_t left_ = 0;
};

}  // namespace quantaria
