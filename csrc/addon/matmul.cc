#include "addon/matmul.h"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/scheme.h"
#include "addon/tensor_handle.h"
#include "addon/weight.h"
#include "core/device.h"
#include "cpu/device.h"
#include "ops/dequant_matmul/dequant_matmul.h"
#include "ops/gemm/dense_factor.h"

namespace quantaria::addon {
namespace {

/// [..., n] as [rows, n].
ConstMatrix as_rows(const Tensor& x) {
  if (x.shape.empty()) fail(ErrorCode::shape, "x: a scalar, [..., in] expected");
  const int64_t n = x.shape.back();
  const int64_t rows = element_count(Shape(x.shape.begin(), x.shape.end() - 1));
  return as_matrix(reshaped(x, {rows, n}));
}

void check_floats(const Tensor& tensor, const char* name) {
  if (tensor.dtype != DType::float32 && tensor.dtype != DType::float16 && tensor.dtype != DType::bfloat16)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", float32, float16 or bfloat16 expected");
}

ops::Operand to_operand(Napi::Value value) {
  return choice<ops::Operand>(value, "compute",
                              {{"float32", ops::Operand::float32},
                               {"bfloat16", ops::Operand::bfloat16},
                               {"int8", ops::Operand::int8}});
}

using MakeFactor = std::function<std::unique_ptr<ops::Factor>()>;

/// y [..., out] = x [..., in] times a factor, queued.
Napi::Value product(const Napi::CallbackInfo& info, const Tensor& x, int64_t in, int64_t out,
                    std::vector<Tensor> weights, MakeFactor make_factor, Napi::Value bias_value,
                    Napi::Value out_dtype) {
  check_floats(x, "x");
  const ConstMatrix rows = as_rows(x);
  if (rows.cols != in) fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [..., ", in, "] expected");
  std::vector<Tensor> inputs = std::move(weights);
  inputs.push_back(x);
  std::optional<Tensor> bias;
  if (!bias_value.IsNull() && !bias_value.IsUndefined()) {
    bias = TensorHandle::get(bias_value, "bias");
    if (!is_float(bias->dtype))
      fail(ErrorCode::dtype, "bias: ", name_of(bias->dtype), ", a float dtype expected");
    if (bias->shape.size() != 1 || bias->elements() != out || !bias->contiguous())
      fail(ErrorCode::shape, "bias: ", to_string(bias->shape), ", [", out, "] expected");
    inputs.push_back(*bias);
  }
  const DType dtype = to_dtype(out_dtype, "outDtype");
  if (!is_float(dtype)) fail(ErrorCode::dtype, "outDtype: ", name_of(dtype), ", a float dtype expected");
  Shape shape(x.shape.begin(), x.shape.end() - 1);
  shape.push_back(out);
  const Tensor y = empty(cpu::device(), dtype, shape);
  cpu::device().enqueue(std::move(inputs), {y}, [=, make_factor = std::move(make_factor)] {
    if (y.elements() == 0) return;
    const std::unique_ptr<ops::Factor> factor = make_factor();
    const ConstMatrix added = bias ? as_matrix(*bias) : ConstMatrix{};
    ops::linear(cpu::device().pool(), rows, *factor, bias ? &added : nullptr,
                {y.data(), dtype, rows.rows, out, out, 1});
  });
  return TensorHandle::make(info.Env(), y);
}

/// matmul(x, w, transposed, bias | null, outDtype, compute): w [in, out], or [out, in] if transposed
Napi::Value matmul(const Napi::CallbackInfo& info) {
  const Tensor x = TensorHandle::get(info[0], "x");
  const Tensor w = TensorHandle::get(info[1], "weight");
  check_floats(w, "weight");
  if (w.shape.size() != 2) fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", a matrix expected");
  const Tensor right = to_bool(info[2], "transposed") ? transposed(w) : w;
  const ops::Operand operand = to_operand(info[5]);
  if (operand == ops::Operand::int8) fail(ErrorCode::unsupported, "compute: int8 needs a quantized weight");
  const auto make_factor = [=] {
    return std::make_unique<ops::DenseFactor>(as_matrix(right), operand == ops::Operand::bfloat16);
  };
  return product(info, x, right.shape[0], right.shape[1], {w}, make_factor, info[3], info[4]);
}

/// linear(x, weight, bias | null, outDtype, compute): weight {scheme, stored, shape}
Napi::Value linear(const Napi::CallbackInfo& info) {
  const Tensor x = TensorHandle::get(info[0], "x");
  const StoredWeight weight = to_weight(info[1], "weight");
  const ops::Operand operand = to_operand(info[4]);
  const auto make_factor = [=] { return weight.factor(operand); };
  return product(info, x, weight.in, weight.out, weight.tensors, make_factor, info[2], info[3]);
}

}  // namespace

void define_matmul(Napi::Env env, Napi::Object exports) {
  exports.Set("matmul", Napi::Function::New<guarded<matmul>>(env));
  exports.Set("linear", Napi::Function::New<guarded<linear>>(env));
}

}  // namespace quantaria::addon
