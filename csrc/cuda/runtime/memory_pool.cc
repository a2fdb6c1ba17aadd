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

std::shared_ptr<std::byte> MemoryPool::allocate(int64_t bytes, const std::function<void()>& wait) {
  const DeviceScope scope(lane_->ordinal());
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* block = nullptr;
  {
    const std::lock_guard lock(mutex_);  // no capture begins before the block is taken
    if (capture_) return allocate_beside(bytes);
    block = take(size, lane_->stream());
  }
  if (block == nullptr) {
    wait();
    (void)cudaMemPoolTrimTo(pool_, 0);
    block = take(size, lane_->stream());
  }
  if (block == nullptr) fail_full(bytes);
  std::shared_ptr<std::byte> fresh = owned(block, bytes);
  if (poisoning()) lane_->require(cudaMemsetAsync(block, kPoison, size, lane_->stream()), "poisoning memory");
  return fresh;
}

/// Null if there is not that much.
void* MemoryPool::take(size_t bytes, cudaStream_t stream) const {
  void* block = nullptr;
  const cudaError_t error = cudaMallocFromPoolAsync(&block, bytes, pool_, stream);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return nullptr;
  }
  lane_->require(error, "allocating memory");
  return block;
}

std::shared_ptr<std::byte> MemoryPool::owned(void* block, int64_t bytes) {
  live_bytes_ += bytes;
  ++live_blocks_;
  return {static_cast<std::byte*>(block),
          [self = shared_from_this(), bytes](std::byte* freed) { self->release(freed, bytes); }};
}

std::shared_ptr<std::byte> MemoryPool::allocate_beside(int64_t bytes) {
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* const block = take(size, capture_->beside);
  if (block == nullptr) fail_full(bytes);
  std::shared_ptr<std::byte> fresh = owned(block, bytes);
  capture_->taken.push_back(fresh);
  if (poisoning())
    lane_->require(cudaMemsetAsync(block, kPoison, size, capture_->beside), "poisoning memory");
  lane_->require(cudaStreamSynchronize(capture_->beside), "allocating memory");
  return fresh;
}

void MemoryPool::open_capture() {
  const DeviceScope scope(lane_->ordinal());
  const std::lock_guard lock(mutex_);
  if (capture_) fail(ErrorCode::argument, lane_->id(), ": a graph is being captured already");
  Capture capture;
  lane_->require(cudaStreamCreateWithFlags(&capture.beside, cudaStreamNonBlocking), "making a stream");
  capture_ = std::move(capture);
}

std::vector<std::shared_ptr<std::byte>> MemoryPool::end_capture() {
  const DeviceScope scope(lane_->ordinal());
  Capture ended;
  {
    const std::lock_guard lock(mutex_);
    ended = *std::exchange(capture_, std::nullopt);
  }
  for (std::byte* const block : ended.released)
    if (cudaFreeAsync(block, lane_->stream()) != cudaSuccess) (void)cudaGetLastError();
  if (cudaStreamDestroy(ended.beside) != cudaSuccess) (void)cudaGetLastError();
  return std::move(ended.taken);
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
  live_bytes_ -= bytes;
  --live_blocks_;
  const std::lock_guard lock(mutex_);
  if (capture_) return capture_->released.push_back(block);
  // A broken device keeps its memory until the process ends, and says why elsewhere.
  if (cudaFreeAsync(block, lane_->stream()) != cudaSuccess) (void)cudaGetLastError();
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
