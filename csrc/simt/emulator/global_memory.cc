#include "simt/emulator/global_memory.h"

#include <cstring>
#include <string>

#include "simt/emulator/guard_band.h"

namespace quantaria::simt::emulator {
namespace {

std::byte* at(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

}  // namespace

std::shared_ptr<std::byte> GlobalMemory::allocate(int64_t bytes) {
  // Blocks of the allocator are aligned to 64 bytes, and so are guard bands: cudaMalloc's 256 is more than
  // kernels ask for.
  std::shared_ptr<std::byte> block = host_->allocate(bytes + 2 * static_cast<int64_t>(kGuardBand));
  std::byte* const data = block.get() + kGuardBand;
  std::memset(data, 0xff, static_cast<size_t>(bytes));
  draw_guard_band(block.get());
  draw_guard_band(data + bytes);
  const std::lock_guard lock(mutex_);
  blocks_.emplace(reinterpret_cast<uintptr_t>(data), static_cast<size_t>(bytes));
  return {data, [self = shared_from_this(), block = std::move(block)](std::byte* given) {
            const std::lock_guard releasing(self->mutex_);
            const auto found = self->blocks_.find(reinterpret_cast<uintptr_t>(given));
            unpoison(given - kGuardBand, found->second + 2 * kGuardBand);
            self->blocks_.erase(found);
          }};
}

bool GlobalMemory::holds(const void* from, size_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(from);
  const std::lock_guard lock(mutex_);
  auto block = blocks_.upper_bound(address);
  if (block == blocks_.begin()) return false;
  --block;
  return address + bytes <= block->first + block->second;
}

void GlobalMemory::require_inside(const void* from, size_t bytes, const char* what, const Site& site) const {
  if (!holds(from, bytes)) fault(std::string(what) + " outside of global memory", site);
}

void GlobalMemory::require_intact() const {
  const std::lock_guard lock(mutex_);
  for (const auto& [address, bytes] : blocks_)
    if (!guard_band_intact(at(address) - kGuardBand) || !guard_band_intact(at(address) + bytes))
      throw Fault("something was written beside a block of " + std::to_string(bytes) +
                  " bytes of global memory");
}

}  // namespace quantaria::simt::emulator
