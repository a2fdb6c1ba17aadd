#include "addon/hadamard.h"

#include <cmath>
#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "ops/copy/copy_tensor.h"
#include "ops/hadamard/hadamard.h"

namespace quantaria::addon {
namespace {

/// hadamard(x, scale): over the last dimension.
Napi::Value hadamard(const Napi::CallbackInfo& info) {
  if (!info[1].IsNumber()) fail(ErrorCode::argument, "scale: a number expected");
  const auto scale = static_cast<float>(info[1].As<Napi::Number>().DoubleValue());
  const Tensor x = TensorHandle::get_anywhere(info[0], "x");
  if (x.shape.empty()) fail(ErrorCode::shape, "x: ", to_string(x.shape), " given, [..., n] expected");
  const int64_t n = x.shape.back();
  ops::check_hadamard_size(n);
  Tensor y = empty(*x.device, x.dtype, x.shape);
  x.device->enqueue({x}, {y}, [x, y, n, scale] {
    const int64_t rows = n == 0 ? 0 : y.elements() / n;
    const bool direct = x.contiguous();
    if (!direct) copy_on_device(x, y);
    const std::byte* const from = direct ? x.data() : y.data();
    if (x.device == &cpu::device())
      return ops::hadamard(cpu::device().pool(), x.dtype, rows, n, scale, from, y.data());
    cuda::Device& device = cuda::of(x.device);
    const ops::HadamardLaunchers& kernels = device.kernels().hadamard;
    const auto workspace = device.allocate(kernels.workspace(rows, n));
    kernels.transform(device.stream(), x.dtype, rows, n, scale, from, y.data(), workspace->data());
  });
  return TensorHandle::make(info.Env(), std::move(y));
}

}  // namespace

void define_hadamard(Napi::Env env, Napi::Object exports) {
  exports.Set("hadamard", Napi::Function::New<guarded<hadamard>>(env));
}

}  // namespace quantaria::addon
