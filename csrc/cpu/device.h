#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "core/allocator.h"
#include "core/device.h"
#include "core/executor.h"
#include "core/thread_pool.h"

namespace quantaria::cpu {

/// The host as a device: one queue thread that runs operations in order, each spread over a pool.
class Device final : public quantaria::Device {
 public:
  Device();

  const std::string& id() const override { return id_; }
  std::shared_ptr<Storage> allocate(int64_t bytes) override;
  void post(std::function<void()> task) override { queue_.post(std::move(task)); }
  void copy_in(const std::byte* host, std::byte* to, int64_t bytes) override;
  void copy_out(const std::byte* from, std::byte* host, int64_t bytes) override;
  void zero(std::byte* to, int64_t bytes) override;

  /// For the bodies of operations. Read on the queue thread only.
  ThreadPool& pool() { return *pool_; }
  int threads() const { return threads_.load(); }

  /// Takes effect for operations queued from now on. ERR_ARGUMENT unless 1 <= threads <= 1024.
  void set_threads(int threads);

  MemoryCounters memory() const override { return allocator_->counters(); }

 private:
  std::string id_ = "cpu";
  std::shared_ptr<HostAllocator> allocator_ = std::make_shared<HostAllocator>();
  std::atomic<int> threads_;
  std::unique_ptr<ThreadPool> pool_;
  Executor queue_;
};

/// The one CPU device of the process. It is never destroyed: its threads may be at work while the
/// process ends.
Device& device();

}  // namespace quantaria::cpu
