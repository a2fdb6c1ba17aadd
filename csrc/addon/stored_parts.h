#pragma once

#include <napi.h>

#include <vector>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "core/device.h"

/// The tensors of a quantized weight's stored form.
namespace quantaria::addon {

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.storage ? tensor.data_as<T>() : nullptr;
}

/// Parts of a stored form that must be there, contiguous, of a dtype and a number of elements, all on one
/// device.
class Parts {
 public:
  explicit Parts(Napi::Value stored) : stored_(stored) {}

  Tensor take(const char* name, DType dtype, int64_t elements) {
    const Tensor& tensor = TensorHandle::get_anywhere(field(stored_, name), name);
    if (tensor.dtype != dtype)
      fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", ", name_of(dtype), " expected");
    if (!tensor.contiguous() || tensor.elements() != elements)
      fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", ", elements,
           " contiguous elements expected");
    if (!taken_.empty() && tensor.device != device())
      fail(ErrorCode::device, name, " is on ", tensor.device->id(), ", the rest on ", device()->id());
    taken_.push_back(tensor);
    return tensor;
  }
  bool has(const char* name) const { return !field(stored_, name).IsUndefined(); }
  const std::vector<Tensor>& taken() const { return taken_; }
  Device* device() const { return taken_.front().device; }

 private:
  Napi::Value stored_;
  std::vector<Tensor> taken_;
};

}  // namespace quantaria::addon
