#include "core/device.h"

#include <new>
#include <utility>

namespace quantaria {
namespace {

/// Whatever a body threw, as the library's own error.
std::shared_ptr<const Error> current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    return std::make_shared<Error>(error);
  } catch (const std::bad_alloc&) {
    return std::make_shared<Error>(ErrorCode::out_of_memory, "out of memory on the device queue");
  } catch (const std::exception& error) {
    return std::make_shared<Error>(ErrorCode::unsupported, error.what());
  }
}

}  // namespace

void Device::enqueue(std::vector<Tensor> inputs, std::vector<Tensor> outputs, std::function<void()> body) {
  post([this, inputs = std::move(inputs), outputs = std::move(outputs), body = std::move(body)] {
    std::shared_ptr<const Error> failure;
    for (const Tensor& input : inputs)
      if (!failure) failure = input.storage->failure();
    if (!failure) {
      try {
        body();
      } catch (...) {
        failure = current_failure();
        if (!untold_) untold_ = failure;
      }
    }
    if (failure)
      for (const Tensor& output : outputs) output.storage->set_failure(failure);
  });
}

std::shared_ptr<const Error> Device::take_failure() { return std::exchange(untold_, nullptr); }

void Device::told(const std::shared_ptr<const Error>& failure) {
  if (untold_ == failure) untold_ = nullptr;
}

Tensor empty(Device& device, DType dtype, Shape shape) {
  const int64_t bytes = element_count(shape) * size_of(dtype);
  Tensor tensor;
  tensor.device = &device;
  tensor.storage = device.allocate(bytes);
  tensor.dtype = dtype;
  tensor.strides = row_major(shape);
  tensor.shape = std::move(shape);
  return tensor;
}

}  // namespace quantaria
