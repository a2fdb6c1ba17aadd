#include "core/device.h"

#include <future>
#include <utility>

#include "core/allocator.h"
#include "core/attempt.h"

namespace quantaria {

std::shared_ptr<const Error> Storages::failure() const {
  for (const std::shared_ptr<Storage>& storage : all_)
    if (storage->failure()) return storage->failure();
  return nullptr;
}

void Storages::set_failure(const std::shared_ptr<const Error>& failure) const {
  for (const std::shared_ptr<Storage>& storage : all_) storage->set_failure(failure);
}

void Device::enqueue(Storages inputs, Storages outputs, std::function<void()> body,
                     const std::source_location& from) {
  post([this, from, inputs = std::move(inputs), outputs = std::move(outputs), body = std::move(body)] {
    std::shared_ptr<const Error> failure = inputs.failure();
    if (failure) {
      skip(failure);
    } else {
      failure = end(failure_of([&] {
        begin(from);
        body();
      }));
      if (!untold_) untold_ = failure;
    }
    if (failure) outputs.set_failure(failure);
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

Tensor transferred(const Tensor& source, Device& device) {
  if (!source.contiguous())
    fail(ErrorCode::shape, "a view of shape ", to_string(source.shape), " with gaps cannot go to ",
         device.id());
  static const auto staging = std::make_shared<HostAllocator>();
  Tensor target = empty(device, source.dtype, source.shape);
  // The source may be rearranged in place as soon as its own queue goes on.
  const std::shared_ptr<std::byte> staged = staging->allocate(source.bytes());
  auto arrival = std::make_shared<std::promise<std::shared_ptr<const Error>>>();
  source.device->post([source, target, staged, arrival] {
    std::shared_ptr<const Error> failure = source.storage->failure();
    if (!failure)
      failure = failure_of([&] { source.device->copy_out(source.data(), staged.get(), source.bytes()); });
    target.storage->set_tiled(source.storage->tiled());
    target.storage->set_scale_dtype(source.storage->scale_dtype());
    arrival->set_value(std::move(failure));
  });
  // Queued second: whatever two threads transfer in opposite directions, some wait is for a task that is
  // already running.
  device.enqueue({}, {target}, [target, staged, arrival] {
    if (const std::shared_ptr<const Error> failure = arrival->get_future().get()) throw Error(*failure);
    target.device->copy_in(staged.get(), target.data(), target.bytes());
  });
  return target;
}

}  // namespace quantaria
