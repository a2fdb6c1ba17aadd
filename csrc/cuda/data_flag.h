#pragma once

#include <memory>

#include "cuda/device.h"

namespace quantaria::cuda {

/// A word in device memory that kernels set to 1 where data breaks a contract: what a check that needs the
/// data leaves behind. For the body of an operation, on the device's queue.
class DataFlag {
 public:
  explicit DataFlag(Device& device) : device_(device), storage_(device.allocate(sizeof(uint32_t))) {
    device.zero(storage_->data(), sizeof(uint32_t));
  }

  uint32_t* word() const { return reinterpret_cast<uint32_t*>(storage_->data()); }

  /// Whether it was set by what was launched until now. Waits for that, on the queue's thread: the one place
  /// where an operation waits for its kernels, so that the failure is its own.
  bool raised() const {
    uint32_t word = 0;
    device_.copy_out(storage_->data(), reinterpret_cast<std::byte*>(&word), sizeof word);
    return word != 0;
  }

 private:
  Device& device_;
  std::shared_ptr<Storage> storage_;
};

/// A tensor's values in host memory, once the queue has come to it: for the message of a check that failed.
template <class T>
std::vector<T> values_of(Device& device, const T* from, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0)
    device.copy_out(reinterpret_cast<const std::byte*>(from), reinterpret_cast<std::byte*>(values.data()),
                    count * static_cast<int64_t>(sizeof(T)));
  return values;
}

}  // namespace quantaria::cuda
