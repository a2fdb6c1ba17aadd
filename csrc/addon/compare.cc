#include "addon/compare.h"

#include <memory>
#include <utility>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/tensor_handle.h"
#include "core/attempt.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "ops/compare/compare.h"

namespace quantaria::addon {
namespace {

const Tensor& float_values(Napi::Value value, const char* name) {
  const Tensor& tensor = TensorHandle::get_anywhere(value, name);
  if (tensor.dtype != DType::float32)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", float32 expected");
  if (!tensor.contiguous()) fail(ErrorCode::shape, name, ": a contiguous tensor expected");
  return tensor;
}

ops::Difference compare_by_cuda(const Tensor& values, const float* reference) {
  cuda::Device& device = cuda::of(values.device);
  const ops::CompareLaunchers& kernels = device.kernels().compare;
  const std::shared_ptr<Storage> workspace = device.allocate(kernels.workspace());
  const std::shared_ptr<Storage> sums = device.allocate(sizeof(ops::Difference));
  kernels.compare(device.stream(), values.data_as<float>(), reference, values.elements(), workspace->data(),
                  reinterpret_cast<ops::Difference*>(sums->data()));
  ops::Difference result;
  device.copy_out(sums->data(), reinterpret_cast<std::byte*>(&result), sizeof result);
  return result;
}

/// compare(values, reference | null): a promise of {error, reference, nonFinite}, sums of squares and a count
Napi::Value compare(const Napi::CallbackInfo& info) {
  const Tensor values = float_values(info[0], "values");
  const bool has_reference = !info[1].IsNull() && !info[1].IsUndefined();
  const Tensor reference = has_reference ? float_values(info[1], "reference") : Tensor{};
  if (has_reference && reference.shape != values.shape)
    fail(ErrorCode::shape, "values ", to_string(values.shape), ", reference ", to_string(reference.shape));
  if (has_reference && reference.device != values.device)
    fail(ErrorCode::device, "values on ", values.device->id(), ", reference on ", reference.device->id());
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto result = std::make_shared<ops::Difference>();
  values.device->post([=, settle = settle] {
    std::shared_ptr<const Error> failure = values.storage->failure();
    if (!failure && has_reference) failure = reference.storage->failure();
    values.device->told(failure);
    if (!failure)
      failure = failure_of([&] {
        if (values.device != &cpu::device()) {
          *result = compare_by_cuda(values, has_reference ? reference.data_as<float>() : nullptr);
          return;
        }
        *result = ops::compare(cpu::device().pool(), values.data_as<float>(),
                               has_reference ? reference.data_as<float>() : nullptr, values.elements());
      });
    settle(failure, [result](Napi::Env env) {
      Napi::Object object = Napi::Object::New(env);
      object.Set("error", result->error);
      object.Set("reference", result->reference);
      object.Set("nonFinite", static_cast<double>(result->non_finite));
      return Napi::Value(object);
    });
  });
  return promise;
}

}  // namespace

void define_compare(Napi::Env env, Napi::Object exports) {
  exports.Set("compare", Napi::Function::New<guarded<compare>>(env));
}

}  // namespace quantaria::addon
