#include "addon/scaling.h"

#include <cmath>
#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "core/device.h"
#include "cpu/device.h"
#include "ops/scaling/scaling.h"

namespace quantaria::addon {
namespace {

bool is_factor(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float16 || dtype == DType::bfloat16;
}

Tensor matrix(Napi::Value value, const char* name) {
  const Tensor tensor = TensorHandle::get(value, name);
  if (!is_factor(tensor.dtype))
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", float32, float16 or bfloat16 expected");
  if (tensor.shape.size() != 2)
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", a matrix expected");
  return tensor;
}

/// Contiguous float32 of so many elements.
Tensor floats(Napi::Value value, const char* name, int64_t elements) {
  const Tensor tensor = TensorHandle::get(value, name);
  if (tensor.dtype != DType::float32)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", float32 expected");
  if (tensor.elements() != elements || !tensor.contiguous())
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", ", elements, " elements expected");
  return tensor;
}

bool is_absent(Napi::Value value) { return value.IsNull() || value.IsUndefined(); }

int64_t groups_of(int64_t columns, int64_t group) { return columns / group + (columns % group != 0 ? 1 : 0); }

/// columnMagnitudes(x [rows, in], maxima [in], sums [in]): both are added to
Napi::Value column_magnitudes(const Napi::CallbackInfo& info) {
  const Tensor x = matrix(info[0], "x");
  const Tensor maxima = floats(info[1], "maxima", x.shape[1]);
  const Tensor sums = floats(info[2], "sums", x.shape[1]);
  cpu::device().enqueue({x, maxima, sums}, {maxima, sums}, [=] {
    if (x.elements() != 0)
      ops::column_magnitudes(cpu::device().pool(), as_matrix(x), maxima.data_as<float>(),
                             sums.data_as<float>());
  });
  return info.Env().Undefined();
}

/// scaleMatrix(w [out, in], rows [out] | null, columns [in] | null): float32 [out, in]
Napi::Value scale_matrix(const Napi::CallbackInfo& info) {
  const Tensor w = matrix(info[0], "w");
  const Tensor rows = is_absent(info[1]) ? Tensor{} : floats(info[1], "rows", w.shape[0]);
  const Tensor columns = is_absent(info[2]) ? Tensor{} : floats(info[2], "columns", w.shape[1]);
  const Tensor to = empty(cpu::device(), DType::float32, w.shape);
  std::vector<Tensor> reads{w};
  for (const Tensor& factors : {rows, columns})
    if (factors.storage) reads.push_back(factors);
  cpu::device().enqueue(reads, {to}, [=] {
    if (to.elements() != 0)
      ops::scale_matrix(cpu::device().pool(), as_matrix(w), rows.storage ? rows.data_as<float>() : nullptr,
                        columns.storage ? columns.data_as<float>() : nullptr, to.data_as<float>());
  });
  return TensorHandle::make(info.Env(), to);
}

/// clampGroups(w [out, in], group, ratios [out, groups]): float32 [out, in]
Napi::Value clamp_groups(const Napi::CallbackInfo& info) {
  const Tensor w = matrix(info[0], "w");
  const int64_t group = to_integer(info[1], "group", 1);
  const Tensor ratios = floats(info[2], "ratios", w.shape[0] * groups_of(w.shape[1], group));
  const Tensor to = empty(cpu::device(), DType::float32, w.shape);
  cpu::device().enqueue({w, ratios}, {to}, [=] {
    if (to.elements() != 0)
      ops::clamp_groups(cpu::device().pool(), as_matrix(w), group, ratios.data_as<float>(),
                        to.data_as<float>());
  });
  return TensorHandle::make(info.Env(), to);
}

/// roundToScale(x [rows, in], scale): float32 [rows, in]
Napi::Value round_to_scale(const Napi::CallbackInfo& info) {
  const Tensor x = matrix(info[0], "x");
  const auto scale = static_cast<float>(to_number(info[1], "scale"));
  if (!(scale > 0) || std::isinf(scale))
    fail(ErrorCode::argument, "scale: ", scale, ", a finite number above 0 expected");
  const Tensor to = empty(cpu::device(), DType::float32, x.shape);
  cpu::device().enqueue({x}, {to}, [=] {
    if (to.elements() != 0)
      ops::round_to_scale(cpu::device().pool(), as_matrix(x), scale, to.data_as<float>());
  });
  return TensorHandle::make(info.Env(), to);
}

/// groupErrors(w [out, in], v [out, in], products [in, in], group): float32 [out, groups]
Napi::Value group_errors(const Napi::CallbackInfo& info) {
  const Tensor w = matrix(info[0], "w");
  const Tensor v = matrix(info[1], "v");
  if (v.shape != w.shape)
    fail(ErrorCode::shape, "v: ", to_string(v.shape), ", ", to_string(w.shape), " expected");
  const Tensor products = matrix(info[2], "products");
  const int64_t in = w.shape[1];
  if (products.dtype != DType::float32 || products.shape != Shape{in, in} || !products.contiguous())
    fail(ErrorCode::shape, "products: ", to_string(products.shape), ", float32 [", in, ", ", in,
         "] expected");
  const int64_t group = to_integer(info[3], "group", 1);
  const Tensor errors = empty(cpu::device(), DType::float32, {w.shape[0], groups_of(in, group)});
  cpu::device().enqueue({w, v, products}, {errors}, [=] {
    if (w.elements() != 0)
      ops::group_errors(cpu::device().pool(), as_matrix(w), as_matrix(v), products.data_as<float>(), group,
                        errors.data_as<float>());
  });
  return TensorHandle::make(info.Env(), errors);
}

}  // namespace

void define_scaling(Napi::Env env, Napi::Object exports) {
  exports.Set("columnMagnitudes", Napi::Function::New<guarded<column_magnitudes>>(env));
  exports.Set("scaleMatrix", Napi::Function::New<guarded<scale_matrix>>(env));
  exports.Set("clampGroups", Napi::Function::New<guarded<clamp_groups>>(env));
  exports.Set("roundToScale", Napi::Function::New<guarded<round_to_scale>>(env));
  exports.Set("groupErrors", Napi::Function::New<guarded<group_errors>>(env));
}

}  // namespace quantaria::addon
