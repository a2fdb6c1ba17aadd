#include "cpu/device.h"

#include <cstring>
#include <utility>

#include "core/error.h"

namespace quantaria::cpu {

Device::Device() : threads_(available_threads()), pool_(std::make_unique<ThreadPool>(threads_.load())) {}

std::shared_ptr<Storage> Device::allocate(int64_t bytes) {
  std::shared_ptr<std::byte> block = allocator_->allocate(bytes);
  std::byte* data = block.get();
  return std::make_shared<Storage>(std::move(block), data, bytes, true);
}

void Device::copy_in(const std::byte* host, std::byte* to, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, host, static_cast<size_t>(bytes));
}

void Device::copy_out(const std::byte* from, std::byte* host, int64_t bytes) { copy_in(from, host, bytes); }

void Device::zero(std::byte* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
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
