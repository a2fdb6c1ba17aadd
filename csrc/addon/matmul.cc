#include "addon/matmul.h"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/llm_int8.h"
#include "addon/scheme.h"
#include "addon/tensor_handle.h"
#include "addon/weight.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/device.h"
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

/// What a product's body needs beside its weight.
struct Operands {
  ConstMatrix x;
  std::optional<ConstMatrix> bias;
  Matrix y;

  const ConstMatrix* added() const { return bias ? &*bias : nullptr; }
};

/// y [..., out] = body(x [..., in], bias), queued.
Napi::Value product(const Napi::CallbackInfo& info, const Tensor& x, int64_t in, int64_t out,
                    std::vector<Tensor> weights, Napi::Value bias_value, Napi::Value out_dtype,
                    std::function<void(const Operands&)> body) {
  check_floats(x, "x");
  const ConstMatrix rows = as_rows(x);
  if (rows.cols != in) fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [..., ", in, "] expected");
  std::vector<Tensor> inputs = std::move(weights);
  inputs.push_back(x);
  std::optional<ConstMatrix> bias;
  if (!bias_value.IsNull() && !bias_value.IsUndefined()) {
    const Tensor tensor = TensorHandle::get_anywhere(bias_value, "bias");
    if (tensor.device != x.device)
      fail(ErrorCode::device, "bias is on ", tensor.device->id(), ", x on ", x.device->id());
    if (!is_float(tensor.dtype))
      fail(ErrorCode::dtype, "bias: ", name_of(tensor.dtype), ", a float dtype expected");
    if (tensor.shape.size() != 1 || tensor.elements() != out || !tensor.contiguous())
      fail(ErrorCode::shape, "bias: ", to_string(tensor.shape), ", [", out, "] expected");
    bias = as_matrix(tensor);
    inputs.push_back(tensor);
  }
  const DType dtype = to_dtype(out_dtype, "outDtype");
  if (!is_float(dtype)) fail(ErrorCode::dtype, "outDtype: ", name_of(dtype), ", a float dtype expected");
  Shape shape(x.shape.begin(), x.shape.end() - 1);
  shape.push_back(out);
  const Tensor y = empty(*x.device, dtype, shape);
  x.device->enqueue(std::move(inputs), {y}, [=, body = std::move(body)] {
    if (y.elements() > 0) body({rows, bias, {y.data(), dtype, rows.rows, out, out, 1}});
  });
  return TensorHandle::make(info.Env(), y);
}

/// matmul(x, w, transposed, bias | null, outDtype, compute): w [in, out], or [out, in] if transposed
Napi::Value matmul(const Napi::CallbackInfo& info) {
  const Tensor x = TensorHandle::get_anywhere(info[0], "x");
  const Tensor w = TensorHandle::get_anywhere(info[1], "weight");
  check_floats(w, "weight");
  if (x.device != w.device)
    fail(ErrorCode::device, "x is on ", x.device->id(), ", weight on ", w.device->id());
  if (w.shape.size() != 2) fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", a matrix expected");
  const Tensor right = to_bool(info[2], "transposed") ? transposed(w) : w;
  const ops::Operand operand = to_operand(info[5]);
  if (operand == ops::Operand::int8) fail(ErrorCode::unsupported, "compute: int8 needs a quantized weight");
  if (x.device != &cpu::device()) {
    return product(info, x, right.shape[0], right.shape[1], {w}, info[3], info[4],
                   [=, &device = cuda::of(x.device)](const Operands& o) {
                     const ConstMatrix weight = as_matrix(right);
                     if (device.multiply_by_library(o.x, weight, o.added(), o.y)) return;
                     const cuda::Kernels& kernels = device.kernels();
                     const auto workspace = device.allocate(kernels.gemm_workspace(o.x, weight));
                     kernels.gemm(device.stream(), o.x, weight, o.added(), o.y, workspace->data(),
                                  device.arrivals());
                   });
  }
  return product(info, x, right.shape[0], right.shape[1], {w}, info[3], info[4], [=](const Operands& o) {
    const ops::DenseFactor factor(as_matrix(right), operand == ops::Operand::bfloat16);
    ops::linear(cpu::device().pool(), o.x, factor, o.added(), o.y);
  });
}

Napi::Value linear_by_cuda(const Napi::CallbackInfo& info, const Tensor& x,
                           const std::shared_ptr<const StoredWeight>& weight, ops::Operand operand) {
  const bool rounded = operand == ops::Operand::bfloat16;
  return product(info, x, weight->in, weight->out, weight->tensors, info[2], info[3],
                 [=, &device = cuda::of(x.device)](const Operands& o) {
                   const cuda::Kernels& kernels = device.kernels();
                   const ops::DeviceWeight& coded = *weight->on_device();
                   if (operand == ops::Operand::int8) {
                     const auto room = device.allocate(kernels.int8.workspace(o.x.rows, coded.matrix));
                     return kernels.int8.matmul(device.stream(), o.x, coded, o.added(), o.y, room->data());
                   }
                   const auto ordered = weight->for_tensor_cores(o.x.dtype, rounded);
                   const auto workspace = device.allocate(
                       kernels.dequant_matmul_workspace(o.x.rows, o.x.dtype, *ordered, rounded));
                   kernels.dequant_matmul(device.stream(), o.x, *ordered, o.added(), o.y, rounded,
                                          workspace->data(), device.arrivals());
                 });
}

/// linear(x, weight, bias | null, outDtype, compute)
Napi::Value linear(const Napi::CallbackInfo& info) {
  const Tensor x = TensorHandle::get_anywhere(info[0], "x");
  const std::shared_ptr<const StoredWeight> weight = WeightHandle::get_anywhere(info[1], "weight");
  if (x.device != weight->packed.device)
    fail(ErrorCode::device, "x is on ", x.device->id(), ", weight on ", weight->packed.device->id());
  const ops::Operand operand = to_operand(info[4]);
  if (operand == ops::Operand::int8 && weight->int8_obstacle != nullptr)
    fail(ErrorCode::unsupported, weight->int8_obstacle);
  if (x.device != &cpu::device()) return linear_by_cuda(info, x, weight, operand);
  return product(info, x, weight->in, weight->out, weight->tensors, info[2], info[3], [=](const Operands& o) {
    ops::linear(cpu::device().pool(), o.x, *weight->factor(operand), o.added(), o.y);
  });
}

/// llmInt8Linear(x, weight, bias | null, outDtype, threshold)
Napi::Value llm_int8_linear(const Napi::CallbackInfo& info) {
  const Tensor x = TensorHandle::get_anywhere(info[0], "x");
  const std::shared_ptr<const StoredWeight> weight = WeightHandle::get_anywhere(info[1], "weight");
  if (x.device != weight->packed.device)
    fail(ErrorCode::device, "x is on ", x.device->id(), ", weight on ", weight->packed.device->id());
  if (!weight->llm_int8) fail(ErrorCode::argument, "weight: one of LLM.int8 expected");
  const Tensor scales = weight->constants[0];
  if (const char* const obstacle = ops::llm_int8_obstacle(weight->in)) fail(ErrorCode::unsupported, obstacle);
  const float threshold = to_threshold(info[4]);
  if (x.device != &cpu::device()) {
    return product(info, x, weight->in, weight->out, weight->tensors, info[2], info[3],
                   [=, &device = cuda::of(x.device)](const Operands& o) {
                     const ops::DeviceWeight coded = weight->coded();
                     const ops::LlmInt8Launchers& kernels = device.kernels().llm_int8;
                     const auto workspace = device.allocate(kernels.workspace(o.x.rows, coded.matrix));
                     device.zero(workspace->data(), kernels.zeroed(coded.matrix));
                     kernels.matmul(device.stream(), o.x, threshold, coded, o.added(), o.y,
                                    workspace->data());
                   });
  }
  return product(info, x, weight->in, weight->out, weight->tensors, info[2], info[3], [=](const Operands& o) {
    weight->arrange_tiles();
    ops::llm_int8_linear(cpu::device().pool(), o.x, threshold, weight->packed.data_as<uint8_t>(),
                         scales.data_as<float>(), o.added(), o.y);
  });
}

}  // namespace

void define_matmul(Napi::Env env, Napi::Object exports) {
  exports.Set("matmul", Napi::Function::New<guarded<matmul>>(env));
  exports.Set("linear", Napi::Function::New<guarded<linear>>(env));
  exports.Set("llmInt8Linear", Napi::Function::New<guarded<llm_int8_linear>>(env));
}

}  // namespace quantaria::addon
