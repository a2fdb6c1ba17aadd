#include "addon/tensor_ops.h"

#include <cstring>
#include <utility>

#include "addon/arguments.h"
#include "addon/devices.h"
#include "addon/environment.h"
#include "addon/tensor_handle.h"
#include "core/allocator.h"
#include "core/attempt.h"
#include "core/device.h"
#include "cpu/device.h"
#include "ops/copy/copy_tensor.h"

namespace quantaria::addon {
namespace {

/// tensorFromBytes(bytes, dtype, shape): the bytes are copied at the call.
Napi::Value from_bytes(const Napi::CallbackInfo& info) {
  Tensor tensor = empty(cpu::device(), to_dtype(info[1], "dtype"), to_shape(info[2], "shape"));
  const Bytes bytes = to_bytes(info[0], "data");  // after the shape, whose getters may run JavaScript
  if (bytes.size != tensor.bytes())
    fail(ErrorCode::shape, "data: ", bytes.size, " bytes, but ", name_of(tensor.dtype), " ",
         to_string(tensor.shape), " takes ", tensor.bytes());
  if (bytes.size > 0) std::memcpy(tensor.data(), bytes.data, static_cast<size_t>(bytes.size));
  return TensorHandle::make(info.Env(), std::move(tensor));
}

/// tensorZeros(dtype, shape, device)
Napi::Value zeros(const Napi::CallbackInfo& info) {
  Device& device = to_device(info[2], "device");
  Tensor tensor = empty(device, to_dtype(info[0], "dtype"), to_shape(info[1], "shape"));
  device.enqueue({}, {tensor}, [tensor] { tensor.device->zero(tensor.data(), tensor.bytes()); });
  return TensorHandle::make(info.Env(), std::move(tensor));
}

/// tensorEmpty(dtype, shape, device): undefined contents, for a caller that writes all of it
Napi::Value make_empty(const Napi::CallbackInfo& info) {
  Device& device = to_device(info[2], "device");
  return TensorHandle::make(info.Env(),
                            empty(device, to_dtype(info[0], "dtype"), to_shape(info[1], "shape")));
}

/// tensorTo(tensor, device): contiguous, a copy
Napi::Value to(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get_anywhere(info[0], "tensor");
  return TensorHandle::make(info.Env(), transferred(source, to_device(info[1], "device")));
}

/// tensorCopy(tensor, dtype): contiguous, in the asked dtype.
Napi::Value copy(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get_anywhere(info[0], "tensor");
  Tensor target = empty(*source.device, to_dtype(info[1], "dtype"), source.shape);
  source.device->enqueue({source}, {target}, [source, target] { copy_on_device(source, target); });
  return TensorHandle::make(info.Env(), std::move(target));
}

/// tensorCopyInto(source, target): into a view of the target; shapes and dtypes must agree.
Napi::Value copy_into(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get_anywhere(info[0], "source");
  const Tensor target = TensorHandle::get_anywhere(info[1], "target");
  if (source.device != target.device)
    fail(ErrorCode::device, "source is on ", source.device->id(), ", target on ", target.device->id());
  if (!target.storage->writable()) fail(ErrorCode::argument, "target: a view of a file cannot be written");
  if (source.shape != target.shape)
    fail(ErrorCode::shape, "source ", to_string(source.shape), " does not fit target ",
         to_string(target.shape));
  if (source.dtype != target.dtype)
    fail(ErrorCode::dtype, "source ", name_of(source.dtype), ", target ", name_of(target.dtype));
  source.device->enqueue({source}, {target}, [source, target] { copy_on_device(source, target); });
  return info.Env().Undefined();
}

void copy_out(const Tensor& source, const Bytes& target) {
  if (source.contiguous()) return source.device->copy_out(source.data(), target.data, target.size);
  if (source.device != &cpu::device())
    fail(ErrorCode::unsupported, "a view with gaps cannot be read from ", source.device->id());
  Tensor out = source;
  out.storage = std::make_shared<Storage>(nullptr, target.data, target.size, true);
  out.offset = 0;
  out.strides = row_major(out.shape);
  copy_tensor(cpu::device().pool(), source, out);
}

/// tensorRead(tensor, arrayBuffer): a promise that settles when the buffer holds the tensor's bits.
Napi::Value read(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get_anywhere(info[0], "tensor");
  const Bytes target = to_bytes(info[1], "buffer");
  if (target.size != source.bytes())
    fail(ErrorCode::shape, "buffer: ", target.size, " bytes, ", source.bytes(), " expected");
  // The buffer is a promise of the system until it is written.
  constexpr int64_t kCheckedBytes = int64_t{64} << 20;
  if (target.size >= kCheckedBytes && target.size > usable_memory(cpu::device().memory()))
    fail(ErrorCode::out_of_memory, "buffer: ", target.size,
         " bytes cannot be filled, the machine has not that much left");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env(), info[1].As<Napi::Object>());
  source.device->post([source, target, settle = settle] {
    std::shared_ptr<const Error> failure = source.storage->failure();
    source.device->told(failure);
    if (!failure && target.size > 0) failure = failure_of([&] { copy_out(source, target); });
    settle(failure, nullptr);
  });
  return promise;
}

/// synchronize(device): a promise that settles when its queue is empty, and rejects with the first failure
/// that no read has told of.
Napi::Value synchronize(const Napi::CallbackInfo& info) {
  Device& device = to_device(info[0], "device");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  device.post([&device, settle = settle] {
    const std::shared_ptr<const Error> failure = failure_of([&] { device.finish(); });
    const std::shared_ptr<const Error> earlier = device.take_failure();
    settle(earlier ? earlier : failure, nullptr);
  });
  return promise;
}

}  // namespace

void define_tensor_ops(Napi::Env env, Napi::Object exports) {
  exports.Set("tensorFromBytes", Napi::Function::New<guarded<from_bytes>>(env));
  exports.Set("tensorEmpty", Napi::Function::New<guarded<make_empty>>(env));
  exports.Set("tensorZeros", Napi::Function::New<guarded<zeros>>(env));
  exports.Set("tensorTo", Napi::Function::New<guarded<to>>(env));
  exports.Set("tensorCopy", Napi::Function::New<guarded<copy>>(env));
  exports.Set("tensorCopyInto", Napi::Function::New<guarded<copy_into>>(env));
  exports.Set("tensorRead", Napi::Function::New<guarded<read>>(env));
  exports.Set("synchronize", Napi::Function::New<guarded<synchronize>>(env));
}

}  // namespace quantaria::addon
