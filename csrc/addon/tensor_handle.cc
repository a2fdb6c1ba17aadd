#include "addon/tensor_handle.h"

#include <utility>

#include "addon/arguments.h"
#include "addon/devices.h"
#include "core/device.h"
#include "cpu/device.h"

namespace quantaria::addon {
namespace {

/// Tells our own objects from others that are passed in their place.
constexpr napi_type_tag kTensorTag{0x5155414E54415249, 0x0000000054454E53};

struct Payload {
  Tensor tensor;
  int64_t accounted;
};

/// tensorFacts(tensor, into): a Float64Array of [dtype, device, contiguous, rank, shape ...], where dtype
/// counts kDTypes and device the CPU and then cudaDevices(). Every operation asks for its result's: an object
/// with an array and texts would cost more than the rest of many a call.
Napi::Value tensor_facts(const Napi::CallbackInfo& info) {
  const Tensor& tensor = TensorHandle::get_anywhere(info[0], "tensor");
  const Bytes bytes = to_bytes(info[1], "into");
  const size_t rank = tensor.shape.size();
  if (bytes.size < static_cast<int64_t>((4 + rank) * sizeof(double)))
    fail(ErrorCode::argument, "into: no room for ", rank, " dimensions");
  auto* const into = reinterpret_cast<double*>(bytes.data);
  into[0] = static_cast<double>(tensor.dtype);
  into[1] = static_cast<double>(index_of(*tensor.device));
  into[2] = tensor.contiguous() ? 1 : 0;
  into[3] = static_cast<double>(rank);
  for (size_t i = 0; i < rank; ++i) into[4 + i] = static_cast<double>(tensor.shape[i]);
  return info.Env().Undefined();
}

/// dtypes(): their names, in the order in which tensorFacts counts them
Napi::Value dtype_names(const Napi::CallbackInfo& info) {
  Napi::Array names = Napi::Array::New(info.Env(), kDTypes.size());
  for (uint32_t i = 0; i < kDTypes.size(); ++i) names.Set(i, std::string(kDTypes[i].name));
  return names;
}

Napi::Value tensor_slice(const Napi::CallbackInfo& info) {
  const Tensor& tensor = TensorHandle::get_anywhere(info[0], "tensor");
  return TensorHandle::make_view(info.Env(),
                                 slice(tensor, to_integer(info[1], "dim"), to_integer(info[2], "start"),
                                       to_integer(info[3], "end"), to_integer(info[4], "step", 1)));
}

Napi::Value tensor_select(const Napi::CallbackInfo& info) {
  const Tensor& tensor = TensorHandle::get_anywhere(info[0], "tensor");
  return TensorHandle::make_view(info.Env(),
                                 select(tensor, to_integer(info[1], "dim"), to_integer(info[2], "index")));
}

Napi::Value tensor_transposed(const Napi::CallbackInfo& info) {
  return TensorHandle::make_view(info.Env(), transposed(TensorHandle::get_anywhere(info[0], "tensor")));
}

// A shape's getters may run JavaScript, which may dispose the tensor: it is taken after them.
Napi::Value tensor_reshape(const Napi::CallbackInfo& info) {
  Shape shape = to_shape(info[1], "shape");
  return TensorHandle::make_view(info.Env(),
                                 reshaped(TensorHandle::get_anywhere(info[0], "tensor"), std::move(shape)));
}

Napi::Value tensor_bitcast(const Napi::CallbackInfo& info) {
  const DType dtype = to_dtype(info[1], "dtype");
  Shape shape = to_shape(info[2], "shape");
  return TensorHandle::make_view(
      info.Env(), bitcast(TensorHandle::get_anywhere(info[0], "tensor"), dtype, std::move(shape)));
}

Napi::Value tensor_dispose(const Napi::CallbackInfo& info) {
  TensorHandle::unwrap(info[0], "tensor").dispose(info.Env());
  return info.Env().Undefined();
}

}  // namespace

TensorHandle::TensorHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TensorHandle>(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw to_javascript(info.Env(),
                        Error(ErrorCode::argument, "tensors are made by operations, not by `new`"));
  auto* payload = info[0].As<Napi::External<Payload>>().Data();
  tensor_ = std::move(payload->tensor);
  share_ = tensor_->storage->share();
  accounted_ = payload->accounted;
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), accounted_);
  napi_type_tag_object(info.Env(), info.This(), &kTensorTag);
}

Napi::Object TensorHandle::construct(Napi::Env env, Tensor tensor, int64_t accounted) {
  Payload payload{std::move(tensor), accounted};
  return Environment::of(env).tensor_class.New({Napi::External<Payload>::New(env, &payload)});
}

Napi::Object TensorHandle::make(Napi::Env env, Tensor tensor) {
  const int64_t bytes = tensor.storage->bytes();
  return construct(env, std::move(tensor), bytes);
}

Napi::Object TensorHandle::make_view(Napi::Env env, Tensor tensor) {
  return construct(env, std::move(tensor), 0);
}

TensorHandle& TensorHandle::unwrap(Napi::Value value, const char* name) {
  bool ours = false;
  if (!value.IsObject() || napi_check_object_type_tag(value.Env(), value, &kTensorTag, &ours) != napi_ok ||
      !ours)
    fail(ErrorCode::argument, name, ": a tensor expected");
  return *Unwrap(value.As<Napi::Object>());
}

const Tensor& TensorHandle::get_anywhere(Napi::Value value, const char* name) {
  const TensorHandle& handle = unwrap(value, name);
  if (!handle.tensor_) fail(ErrorCode::disposed, name, ": the tensor was disposed");
  return *handle.tensor_;
}

const Tensor& TensorHandle::get_with(const Tensor& other, Napi::Value value, const char* name) {
  const Tensor& tensor = get_anywhere(value, name);
  if (tensor.device != other.device)
    fail(ErrorCode::device, name, " is on ", tensor.device->id(), ", the rest on ", other.device->id());
  return tensor;
}

void TensorHandle::dispose(Napi::Env env) {
  if (!tensor_) return;
  tensor_.reset();
  share_.reset();
  Napi::MemoryManagement::AdjustExternalMemory(env, -accounted_);
}

void define_tensor(Napi::Env env, Napi::Object exports, Environment& environment) {
  environment.tensor_class = Napi::Persistent(TensorHandle::DefineClass(env, "NativeTensor", {}));
  exports.Set("tensorFacts", Napi::Function::New<guarded<tensor_facts>>(env));
  exports.Set("dtypes", Napi::Function::New<guarded<dtype_names>>(env));
  exports.Set("tensorSlice", Napi::Function::New<guarded<tensor_slice>>(env));
  exports.Set("tensorSelect", Napi::Function::New<guarded<tensor_select>>(env));
  exports.Set("tensorTransposed", Napi::Function::New<guarded<tensor_transposed>>(env));
  exports.Set("tensorReshape", Napi::Function::New<guarded<tensor_reshape>>(env));
  exports.Set("tensorBitcast", Napi::Function::New<guarded<tensor_bitcast>>(env));
  exports.Set("tensorDispose", Napi::Function::New<guarded<tensor_dispose>>(env));
}

}  // namespace quantaria::addon
