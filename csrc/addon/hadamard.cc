#include "addon/hadamard.h"

#include <cmath>
#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "cpu/device.h"
#include "ops/copy/copy_tensor.h"
#include "ops/hadamard/hadamard.h"

namespace quantaria::addon {
namespace {

/// hadamard(x, scale): over the last dimension.
Napi::Value hadamard(const Napi::CallbackInfo& info) {
  if (!info[1].IsNumber()) fail(ErrorCode::argument, "scale: a number expected");
  const auto scale = static_cast<float>(info[1].As<Napi::Number>().DoubleValue());
  const Tensor x = TensorHandle::get(info[0], "x");
  if (x.shape.empty()) fail(ErrorCode::shape, "x: ", to_string(x.shape), " given, [..., n] expected");
  const int64_t n = x.shape.back();
  ops::check_hadamard_size(n);
  Tensor y = empty(cpu::device(), x.dtype, x.shape);
  cpu::device().enqueue({x}, {y}, [x, y, n, scale] {
    ThreadPool& pool = cpu::device().pool();
    const int64_t rows = n == 0 ? 0 : y.elements() / n;
    const bool direct = x.contiguous();
    if (!direct) copy_tensor(pool, x, y);
    ops::hadamard(pool, x.dtype, rows, n, scale, direct ? x.data() : y.data(), y.data());
  });
  return TensorHandle::make(info.Env(), std::move(y));
}

}  // namespace

void define_hadamard(Napi::Env env, Napi::Object exports) {
  exports.Set("hadamard", Napi::Function::New<guarded<hadamard>>(env));
}

}  // namespace quantaria::addon
