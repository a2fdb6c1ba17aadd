#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/allocator.h"
#include "cuda/runtime/lane.h"

namespace quantaria::cuda {

/// A device's memory in the order of its stream: a block may be used by work that is given after it was
/// taken, and goes back behind the work that was given before it was freed, without anyone waiting. May be
/// used from several threads.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
 public:
  /// Of more unused memory than this, what is over goes back to the driver whenever someone waits.
  static constexpr uint64_t kMaxCachedBytes = uint64_t{4} << 30;

  explicit MemoryPool(std::shared_ptr<Lane> lane);
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  /// Aligned to 256 bytes; undefined contents. ERR_OUT_OF_MEMORY if the device has not that much, even after
  /// `wait`, which waits for what is being freed.
  std::shared_ptr<std::byte> allocate(int64_t bytes, const std::function<void()>& wait);

  MemoryCounters counters() const;

  /// From here to end_capture() the stream is not touched, as it may be noting work down: blocks are taken
  /// beside it, and given back afterwards. ERR_ARGUMENT between the two.
  void open_capture();
  /// The blocks that were taken meanwhile: the noted work uses them.
  std::vector<std::shared_ptr<std::byte>> end_capture();

 private:
  struct Capture {
    cudaStream_t beside = nullptr;
    std::vector<std::shared_ptr<std::byte>> taken;
    std::vector<std::byte*> released;
  };

  [[noreturn]] void fail_full(int64_t bytes) const;
  void* take(size_t bytes, cudaStream_t stream) const;
  std::shared_ptr<std::byte> owned(void* block, int64_t bytes);
  std::shared_ptr<std::byte> allocate_beside(int64_t bytes);
  void release(std::byte* block, int64_t bytes);

  const std::shared_ptr<Lane> lane_;
  cudaMemPool_t pool_ = nullptr;
  std::atomic<int64_t> live_bytes_{0};
  std::atomic<int64_t> live_blocks_{0};
  mutable std::mutex mutex_;  // of what follows
  std::optional<Capture> capture_;
};

}  // namespace quantaria::cuda
