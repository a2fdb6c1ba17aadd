#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "core/executor.h"
#include "cuda/cublaslt/products.h"
#include "cuda/device.h"
#include "cuda/runtime/discovery.h"
#include "cuda/runtime/graph.h"
#include "cuda/runtime/lane.h"
#include "cuda/runtime/memory_pool.h"
#include "cuda/runtime/staging.h"

namespace quantaria::cuda {

/// A device by way of the CUDA runtime: a GPU, or the one that the host plays (csrc/simt/runtime). One thread
/// gives work to one stream; whoever reads waits, nobody else. The device is made ready when it is first
/// used.
class RuntimeDevice final : public Device {
 public:
  RuntimeDevice(DeviceFacts facts, const Kernels& kernels, int64_t chunk_bytes = Staging::kChunkBytes)
      : facts_(std::move(facts)), kernels_(kernels), chunk_bytes_(chunk_bytes) {}

  const std::string& id() const override { return facts_.id; }
  const std::string& kind() const override { return facts_.kind; }
  const std::string& name() const override { return facts_.name; }
  int64_t memory_bytes() const override { return facts_.memory_bytes; }
  const std::string& compute_capability() const override { return facts_.compute_capability; }
  const Kernels& kernels() const override { return kernels_; }
  void* stream() override { return ready().lane->stream(); }
  unsigned* arrivals() override { return ready().lane->arrivals(); }

  std::shared_ptr<Storage> allocate(int64_t bytes) override;
  MemoryCounters memory() const override;
  void post(std::function<void()> task) override;
  void copy_in(const std::byte* host, std::byte* to, int64_t bytes) override;
  void copy_out(const std::byte* from, std::byte* host, int64_t bytes) override;
  void zero(std::byte* to, int64_t bytes) override;
  void finish() override { ready().lane->finish(); }
  void start_timer() override;
  double stop_timer() override;
  bool multiply_by_library(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
                           const Matrix& c) override;
  void open_capture() override { ready().pool->open_capture(); }
  void begin_capture() override;
  std::shared_ptr<Graph> end_capture() override;
  bool capturing() override { return ready().lane->capturing(); }

 protected:
  void begin(const std::source_location& from) override { ready().lane->begin(from); }
  std::shared_ptr<const Error> end(std::shared_ptr<const Error> thrown) override;
  void skip(const std::shared_ptr<const Error>& failure) override;

 private:
  /// What work needs, from the first use on.
  struct Ready {
    Ready(const DeviceFacts& facts, int64_t chunk_bytes)
        : lane(std::make_shared<Lane>(facts.ordinal, facts.id)),
          pool(std::make_shared<MemoryPool>(lane)),
          staging(lane, chunk_bytes) {}
    ~Ready();
    Ready(const Ready&) = delete;
    Ready& operator=(const Ready&) = delete;

    std::shared_ptr<Lane> lane;
    std::shared_ptr<MemoryPool> pool;  // blocks may outlive the device
    Staging staging;
    cudaEvent_t timer_start = nullptr;
    cudaEvent_t timer_end = nullptr;
    std::unique_ptr<cublaslt::Products> products;  // of the queue's thread
  };

  /// ERR_CUDA if the device cannot be used; the next use tries again.
  Ready& ready();
  void wait_for_freed();

  const DeviceFacts facts_;
  const Kernels& kernels_;
  const int64_t chunk_bytes_;
  mutable std::mutex mutex_;
  std::unique_ptr<Ready> ready_;
  std::shared_ptr<const Error> capture_failure_;  // of the queue's thread: the first one
  Executor queue_;                                // ends first, when it has done all that is queued
};

}  // namespace quantaria::cuda
