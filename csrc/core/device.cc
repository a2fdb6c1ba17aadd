#include "core/device.h"

#include <utility>

#include "core/attempt.h"

namespace quantaria {
void Device::enqueue(std::vector<Tensor> inputs, std::vector<Tensor> outputs, std::function<void()> body) {
  post([this, inputs = std::move(inputs), outputs = std::move(outputs), body = std::move(body)] {
    std::shared_ptr<const Error> failure;
    for (const Tensor& input : inputs)
      if (!failure) failure = input.storage->failure();
    if (!failure) {
      failure = failure_of(body);
      if (!untold_) untold_ = failure;
    }
    if (failure)
      for (const Tensor& output : outputs) output.storage->set_failure(failure);
  });
}

std::shared_ptr<const Error> Device::take_failure() { return std::exchange(untold_, nullptr); }

void Device::told(const std::shared_ptr<const Error>& failure) {
  if (failure && untold_ == failure) untold_ = nullptr;
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
