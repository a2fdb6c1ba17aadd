#pragma once

#include <napi.h>

#include <memory>
#include <optional>

#include "addon/environment.h"
#include "core/tensor.h"

namespace quantaria::addon {

/// The native side of a JavaScript tensor: one reference to a storage, with a view of it. The JavaScript
/// object is opaque, without methods: functions take it and check its type tag, so that a wrong `this`
/// cannot be mistaken for it.
class TensorHandle : public Napi::ObjectWrap<TensorHandle> {
 public:
  explicit TensorHandle(const Napi::CallbackInfo& info);
  void Finalize(Napi::Env env) override { dispose(env); }

  /// A handle for a tensor that an operation has just made; its bytes count as this handle's for the garbage
  /// collector.
  static Napi::Object make(Napi::Env env, Tensor tensor);

  /// A handle for a view of bytes that another handle or a mapped file owns.
  static Napi::Object make_view(Napi::Env env, Tensor tensor);

  /// The handle behind a value, disposed or not. ERR_ARGUMENT if it is none.
  static TensorHandle& unwrap(Napi::Value value, const char* name);

  /// The tensor behind a value. ERR_ARGUMENT if it is not a handle, ERR_DISPOSED if it was disposed.
  static const Tensor& get_anywhere(Napi::Value value, const char* name);

  /// The same on the device of another argument: ERR_DEVICE on another.
  static const Tensor& get_with(const Tensor& other, Napi::Value value, const char* name);

  bool disposed() const { return !tensor_; }
  void dispose(Napi::Env env);

 private:
  static Napi::Object construct(Napi::Env env, Tensor tensor, int64_t accounted);

  std::optional<Tensor> tensor_;
  std::shared_ptr<const void> share_;  // in its storage
  int64_t accounted_ = 0;              // bytes that the garbage collector was told of
};

void define_tensor(Napi::Env env, Napi::Object exports, Environment& environment);

}  // namespace quantaria::addon
