#include "cuda/runtime/memory_pool.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "cuda/runtime/call.h"

namespace quantaria::cuda {
namespace {

/// As for host memory: so that an operation that leaves part of its output unwritten is seen.
bool poisoning() {
  static const bool on = std::getenv("QUANTARIA_POISON") != nullptr;
  return on;
}

constexpr int kPoison = 0xff;  // NaN as any float

}  // namespace

MemoryPool::MemoryPool(std::shared_ptr<Lane> lane) : lane_(std::move(lane)) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = lane_->ordinal();
  lane_->require(cudaMemPoolCreate(&pool_, &properties), "making a memory pool");
  uint64_t kept = kMaxCachedBytes;
  (void)cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &kept);
}

MemoryPool::~MemoryPool() {
  const DeviceScope scope(lane_->ordinal());
  (void)cudaStreamSynchronize(lane_->stream());  // the last blocks may be on their way back
  (void)cudaMemPoolDestroy(pool_);
  (void)cudaGetLastError();
}

std::shared_ptr<std::byte> MemoryPool::allocate(int64_t bytes) {
  const DeviceScope scope(lane_->ordinal());
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* block = nullptr;
  cudaError_t error = cudaMallocFromPoolAsync(&block, size, pool_, lane_->stream());
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    lane_->finish();
    (void)cudaMemPoolTrimTo(pool_, 0);
    error = cudaMallocFromPoolAsync(&block, size, pool_, lane_->stream());
  }
  if (error == cudaErrorMemoryAllocation) fail_full(bytes);
  lane_->require(error, "allocating memory");
  live_bytes_ += bytes;
  ++live_blocks_;
  std::shared_ptr<std::byte> owned(
      static_cast<std::byte*>(block),
      [self = shared_from_this(), bytes](std::byte* freed) { self->release(freed, bytes); });
  if (poisoning()) lane_->require(cudaMemsetAsync(block, kPoison, size, lane_->stream()), "poisoning memory");
  return owned;
}

void MemoryPool::fail_full(int64_t bytes) const {
  (void)cudaGetLastError();
  size_t free = 0;
  size_t total = 0;
  (void)cudaMemGetInfo(&free, &total);
  (void)cudaGetLastError();
  fail(ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes on ", lane_->id(), ": ", free, " of ",
       total, " are free; ", live_blocks_.load(), " tensors hold ", live_bytes_.load(),
       " (dispose() those that are no longer needed)");
}

void MemoryPool::release(std::byte* block, int64_t bytes) {
  const DeviceScope scope(lane_->ordinal());
  // A broken device keeps its memory until the process ends, and says why elsewhere.
  if (cudaFreeAsync(block, lane_->stream()) != cudaSuccess) (void)cudaGetLastError();
  live_bytes_ -= bytes;
  --live_blocks_;
}

MemoryCounters MemoryPool::counters() const {
  const DeviceScope scope(lane_->ordinal());
  uint64_t reserved = 0;
  uint64_t used = 0;
  const bool known =
      cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved) == cudaSuccess &&
      cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &used) == cudaSuccess;
  if (!known) (void)cudaGetLastError();
  return {live_bytes_, known ? static_cast<int64_t>(reserved - std::min(used, reserved)) : 0, live_blocks_};
}

}  // namespace quantaria::cuda
