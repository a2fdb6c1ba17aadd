#include "core/pages.h"

#include <sys/mman.h>
#include <unistd.h>

namespace quantaria {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kLargePage = int64_t{2} << 20;
/// Addresses, not memory: what is not touched costs nothing.
constexpr int64_t kSlab = int64_t{64} << 20;

std::byte* on_large_pages(int64_t bytes) {
  const int64_t whole = (bytes + kLargePage - 1) / kLargePage * kLargePage;
  void* const block = std::aligned_alloc(static_cast<size_t>(kLargePage), static_cast<size_t>(whole));
#if defined(MADV_HUGEPAGE)
  // A system without large pages refuses, and the block is as good as any other.
  if (block != nullptr) ::madvise(block, static_cast<size_t>(whole), MADV_HUGEPAGE);
#endif
  return static_cast<std::byte*>(block);
}

}  // namespace

std::byte* Pages::take(int64_t capacity) {
  if (capacity >= kSmallestAlone) return on_large_pages(capacity);
  if (capacity >= kSmallestCarved) return carve(capacity);
  return static_cast<std::byte*>(
      std::aligned_alloc(static_cast<size_t>(kAlignment), static_cast<size_t>(capacity)));
}

/// Slabs stay as long as this object: their blocks are handed out again, whole.
std::byte* Pages::carve(int64_t capacity) {
  const std::lock_guard lock(mutex_);
  if (left_ < capacity) {
    std::byte* const slab = on_large_pages(kSlab);
    if (slab == nullptr) return nullptr;
    slabs_.emplace_back(slab);
    rest_ = slab;
    left_ = kSlab;
  }
  std::byte* const block = rest_;
  rest_ += capacity;
  left_ -= capacity;
  return block;
}

bool Pages::give_back(std::byte* block, int64_t capacity) {
  if (capacity < kSmallestCarved || capacity >= kSmallestAlone) {
    std::free(block);
    return true;
  }
  // Neighbours share the pages at both ends.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(block) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(block) + static_cast<uintptr_t>(capacity)) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  return false;
}

}  // namespace quantaria
