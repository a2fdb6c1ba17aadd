#include "addon/tensor_ops.h"

#include <cstring>
#include <utility>

#include "addon/arguments.h"
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

/// tensorZeros(dtype, shape)
Napi::Value zeros(const Napi::CallbackInfo& info) {
  Tensor tensor = empty(cpu::device(), to_dtype(info[0], "dtype"), to_shape(info[1], "shape"));
  cpu::device().enqueue({}, {tensor},
                        [tensor] { std::memset(tensor.data(), 0, static_cast<size_t>(tensor.bytes())); });
  return TensorHandle::make(info.Env(), std::move(tensor));
}

/// tensorEmpty(dtype, shape): undefined contents, for a caller that writes all of it
Napi::Value make_empty(const Napi::CallbackInfo& info) {
  return TensorHandle::make(info.Env(),
                            empty(cpu::device(), to_dtype(info[0], "dtype"), to_shape(info[1], "shape")));
}

/// tensorCopy(tensor, dtype): contiguous, in the asked dtype.
Napi::Value copy(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get(info[0], "tensor");
  Tensor target = empty(cpu::device(), to_dtype(info[1], "dtype"), source.shape);
  cpu::device().enqueue({source}, {target},
                        [source, target] { copy_tensor(cpu::device().pool(), source, target); });
  return TensorHandle::make(info.Env(), std::move(target));
}

/// tensorCopyInto(source, target): into a view of the target; shapes and dtypes must agree.
Napi::Value copy_into(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get(info[0], "source");
  const Tensor target = TensorHandle::get(info[1], "target");
  if (!target.storage->writable()) fail(ErrorCode::argument, "target: a view of a file cannot be written");
  if (source.shape != target.shape)
    fail(ErrorCode::shape, "source ", to_string(source.shape), " does not fit target ",
         to_string(target.shape));
  if (source.dtype != target.dtype)
    fail(ErrorCode::dtype, "source ", name_of(source.dtype), ", target ", name_of(target.dtype));
  cpu::device().enqueue({source}, {target},
                        [source, target] { copy_tensor(cpu::device().pool(), source, target); });
  return info.Env().Undefined();
}

void copy_out(const Tensor& source, const Bytes& target) {
  Tensor out = source;
  out.storage = std::make_shared<Storage>(nullptr, target.data, target.size, true);
  out.offset = 0;
  out.strides = row_major(out.shape);
  copy_tensor(cpu::device().pool(), source, out);
}

/// tensorRead(tensor, arrayBuffer): a promise that settles when the buffer holds the tensor's bits.
Napi::Value read(const Napi::CallbackInfo& info) {
  const Tensor source = TensorHandle::get(info[0], "tensor");
  const Bytes target = to_bytes(info[1], "buffer");
  if (target.size != source.bytes())
    fail(ErrorCode::shape, "buffer: ", target.size, " bytes, ", source.bytes(), " expected");
  // The buffer is a promise of the system until it is written.
  constexpr int64_t kCheckedBytes = int64_t{64} << 20;
  if (target.size >= kCheckedBytes && target.size > usable_memory(cpu::device().memory()))
    fail(ErrorCode::out_of_memory, "buffer: ", target.size,
         " bytes cannot be filled, the machine has not that much left");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env(), info[1].As<Napi::Object>());
  cpu::device().post([source, target, settle = settle] {
    std::shared_ptr<const Error> failure = source.storage->failure();
    cpu::device().told(failure);
    if (!failure && target.size > 0) failure = failure_of([&] { copy_out(source, target); });
    settle(failure, nullptr);
  });
  return promise;
}

/// synchronize(): a promise that settles when the queue is empty, and rejects with the first failure that
/// no read has told of.
Napi::Value synchronize(const Napi::CallbackInfo& info) {
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  cpu::device().post([settle = settle] { settle(cpu::device().take_failure(), nullptr); });
  return promise;
}

}  // namespace

void define_tensor_ops(Napi::Env env, Napi::Object exports) {
  exports.Set("tensorFromBytes", Napi::Function::New<guarded<from_bytes>>(env));
  exports.Set("tensorEmpty", Napi::Function::New<guarded<make_empty>>(env));
  exports.Set("tensorZeros", Napi::Function::New<guarded<zeros>>(env));
  exports.Set("tensorCopy", Napi::Function::New<guarded<copy>>(env));
  exports.Set("tensorCopyInto", Napi::Function::New<guarded<copy_into>>(env));
  exports.Set("tensorRead", Napi::Function::New<guarded<read>>(env));
  exports.Set("synchronize", Napi::Function::New<guarded<synchronize>>(env));
}

}  // namespace quantaria::addon
