#include "core/allocator.h"

#include <unistd.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "core/error.h"

namespace quantaria {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kCheckedBytes = int64_t{64} << 20;  // smaller blocks are not worth a look at the system's state
constexpr int64_t kReserveBytes = int64_t{64} << 20;  // left for everyone else

/// Next size of the form (4..7) * 2^k, so that a freed block fits later requests at under 25 % waste.
int64_t size_class(int64_t bytes) {
  if (bytes <= 4 * kAlignment) return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const int shift = std::bit_width(static_cast<uint64_t>(bytes - 1)) - 3;
  const int64_t step = int64_t{1} << shift;
  return (bytes + step - 1) / step * step;
}

/// A single number in a file such as memory.max; nothing if it is absent or says "max".
int64_t number_in(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : std::numeric_limits<int64_t>::max();
}

/// Tests fill fresh blocks, so that an operation that leaves part of its output unwritten is seen.
bool poisoning() {
  static const bool on = std::getenv("QUANTARIA_POISON") != nullptr;
  return on;
}

}  // namespace

int64_t physical_memory() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
}

int64_t available_memory() {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const int64_t limit = number_in("/sys/fs/cgroup/memory.max");
  const int64_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit != std::numeric_limits<int64_t>::max() && used <= limit)
    available = available < limit - used ? available : limit - used;
  return available;
}

HostAllocator::~HostAllocator() {
  for (auto& [capacity, blocks] : cache_)
    for (std::byte* block : blocks) std::free(block);
}

std::shared_ptr<std::byte> HostAllocator::allocate(int64_t bytes) {
  const int64_t capacity = size_class(bytes > 0 ? bytes : 1);
  std::byte* block = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = cache_.find(capacity); found != cache_.end() && !found->second.empty()) {
      block = found->second.back();
      found->second.pop_back();
      counters_.cached_bytes -= capacity;
    }
  }
  if (block == nullptr) {
    if (capacity >= kCheckedBytes && capacity > available_memory() - kReserveBytes) {
      const MemoryCounters now = counters();
      fail(ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes: ", available_memory(),
           " are available; ", now.live_blocks, " tensors hold ", now.live_bytes,
           " (dispose() those that are no longer needed)");
    }
    block = static_cast<std::byte*>(std::aligned_alloc(kAlignment, static_cast<size_t>(capacity)));
    if (block == nullptr) fail(ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes");
  }
  if (poisoning()) std::memset(block, 0xA5, static_cast<size_t>(capacity));
  {
    const std::lock_guard lock(mutex_);
    counters_.live_bytes += capacity;
    ++counters_.live_blocks;
  }
  return {block, [self = shared_from_this(), capacity](std::byte* freed) { self->release(freed, capacity); }};
}

void HostAllocator::release(std::byte* block, int64_t capacity) {
  {
    const std::lock_guard lock(mutex_);
    counters_.live_bytes -= capacity;
    --counters_.live_blocks;
    if (counters_.cached_bytes + capacity <= kMaxCachedBytes) {
      cache_[capacity].push_back(block);
      counters_.cached_bytes += capacity;
      return;
    }
  }
  std::free(block);
}

MemoryCounters HostAllocator::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

}  // namespace quantaria
