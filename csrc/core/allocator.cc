#include "core/allocator.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"

namespace quantaria {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kCheckedBytes = int64_t{64}
                                  << 20;  // fresh memory after which the system's state is looked at again
constexpr int64_t kReserveBytes = int64_t{64} << 20;  // left for everyone else

/// Next size of the form (4..7) * 2^k, so that a freed block fits later requests at under 25 % waste.
int64_t size_class(int64_t bytes) {
  if (bytes <= 4 * kAlignment) return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const int shift = std::bit_width(static_cast<uint64_t>(bytes - 1)) - 3;
  const int64_t step = int64_t{1} << shift;
  return (bytes + step - 1) / step * step;
}

/// The number after `key` at the start of a line; without a key, the first number of the file. Nothing if it
/// is not there (a limit may say "max").
std::optional<int64_t> value_in(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string word;
  int64_t value = 0;
  if (key.empty()) return file >> value ? std::optional(value) : std::nullopt;
  while (file >> word) {
    if (word == key && file >> value) return value;
    std::getline(file, word);
  }
  return std::nullopt;
}

/// Where Linux says what a control group may use: version 2, then version 1.
struct ControlGroup {
  const char* limit;
  const char* used;
  const char* statistics;
  const char* cache_key;
};
constexpr ControlGroup kControlGroups[] = {
    {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat",
     "inactive_file"},
    {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"},
};

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
  if (const auto kib = value_in("/proc/meminfo", "MemAvailable:")) available = *kib * 1024;
  for (const ControlGroup& group : kControlGroups) {
    const auto limit = value_in(group.limit, "");
    const auto used = value_in(group.used, "");
    if (!limit || !used) continue;
    // Files in the page cache are counted as used, but give way.
    const int64_t cache = value_in(group.statistics, group.cache_key).value_or(0);
    available = std::min(available, std::max<int64_t>(0, *limit - *used + cache));
  }
  return available;
}

int64_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0, shared = 0;
  file >> total >> resident >> shared;
  return (resident - shared) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
}

int64_t usable_memory(const MemoryCounters& counters) {
  const int64_t promised =
      std::max<int64_t>(0, counters.live_bytes + counters.cached_bytes - resident_memory());
  return std::max<int64_t>(0, available_memory() - promised - kReserveBytes);
}

HostAllocator::~HostAllocator() {
  for (const Kept& kept : kept_) pages_.give_back(kept.block, kept.capacity);
}

std::shared_ptr<std::byte> HostAllocator::allocate(int64_t bytes) {
  const int64_t capacity = size_class(bytes > 0 ? bytes : 1);
  std::byte* block = nullptr;
  {
    const std::lock_guard lock(mutex_);
    block = take_kept(capacity);
  }
  if (block == nullptr) {
    require_fresh(bytes, capacity);
    {
      const std::lock_guard lock(mutex_);
      block = take_bare(capacity);
    }
    if (block == nullptr) block = pages_.take(capacity);
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

void HostAllocator::require_fresh(int64_t bytes, int64_t capacity) {
  MemoryCounters now;
  {
    const std::lock_guard lock(mutex_);
    unchecked_ += capacity;
    if (unchecked_ < kCheckedBytes) return;
    unchecked_ = 0;
    now = counters_;
  }
  const int64_t usable = usable_memory(now);
  if (capacity <= usable) return;
  {
    const std::lock_guard lock(mutex_);
    unchecked_ = kCheckedBytes;  // no memory goes out before there is some
  }
  fail(ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes: ", usable, " are available; ",
       now.live_blocks, " tensors hold ", now.live_bytes, " (dispose() those that are no longer needed)");
}

/// The one that came back last: its lines may still be in a cache.
std::byte* HostAllocator::take_kept(int64_t capacity) {
  const auto found = by_capacity_.find(capacity);
  if (found == by_capacity_.end() || found->second.empty()) return nullptr;
  const Line::iterator place = found->second.back();
  found->second.pop_back();
  std::byte* const block = place->block;
  kept_.erase(place);
  counters_.cached_bytes -= capacity;
  return block;
}

std::byte* HostAllocator::take_bare(int64_t capacity) {
  const auto found = bare_.find(capacity);
  if (found == bare_.end() || found->second.empty()) return nullptr;
  std::byte* const block = found->second.back();
  found->second.pop_back();
  return block;
}

std::optional<HostAllocator::Kept> HostAllocator::take_surplus() {
  if (counters_.cached_bytes <= kMaxCachedBytes) return {};
  const Kept oldest = kept_.front();
  by_capacity_.at(oldest.capacity).pop_front();
  kept_.pop_front();
  counters_.cached_bytes -= oldest.capacity;
  return oldest;
}

void HostAllocator::release(std::byte* block, int64_t capacity) {
  {
    const std::lock_guard lock(mutex_);
    counters_.live_bytes -= capacity;
    --counters_.live_blocks;
    kept_.push_back({capacity, block});
    by_capacity_[capacity].push_back(std::prev(kept_.end()));
    counters_.cached_bytes += capacity;
  }
  // The system takes its time: others may go on meanwhile.
  for (;;) {
    std::optional<Kept> surplus;
    {
      const std::lock_guard lock(mutex_);
      surplus = take_surplus();
    }
    if (!surplus) return;
    if (pages_.give_back(surplus->block, surplus->capacity)) continue;
    const std::lock_guard lock(mutex_);
    bare_[surplus->capacity].push_back(surplus->block);
  }
}

MemoryCounters HostAllocator::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

}  // namespace quantaria
