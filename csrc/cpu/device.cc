#include "cpu/device.h"

#include <utility>

#include "core/error.h"

namespace quantaria::cpu {

Device::Device() : threads_(available_threads()), pool_(std::make_unique<ThreadPool>(threads_.load())) {}

std::shared_ptr<Storage> Device::allocate(int64_t bytes) {
  std::shared_ptr<std::byte> block = allocator_->allocate(bytes);
  std::byte* data = block.get();
  return std::make_shared<Storage>(std::move(block), data, bytes, true);
}

void Device::set_threads(int threads) {
  if (threads < 1 || threads > 1024) fail(ErrorCode::argument, "threads: ", threads, ", 1 to 1024 expected");
  threads_.store(threads);
  // The pool may be at work: exchange it in queue order.
  post([this, threads] { pool_ = std::make_unique<ThreadPool>(threads); });
}

Device& device() {
  static Device* const instance = std::make_unique<Device>().release();
  return *instance;
}

}  // namespace quantaria::cpu
