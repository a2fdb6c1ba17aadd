#include "ops/moe/experts.h"

#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/moe.h"
#include "addon/scheme.h"
#include "addon/tensor_handle.h"
#include "addon/weight.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/refusal.h"
#include "ops/gemm/dense_factor.h"
#include "ops/moe/experts_cuda.h"

namespace quantaria::addon {
namespace {

/// A right factor that is to be made when the queue comes to it: of a quantized weight, or of a dense matrix
/// [in, out].
struct FutureFactor {
  int64_t in;
  int64_t out;
  std::shared_ptr<const StoredWeight> weight;  // or null
  Tensor dense;

  /// For the CPU.
  std::unique_ptr<ops::Factor> make(ops::Operand products) const {
    if (weight) return weight->factor(products);
    return std::make_unique<ops::DenseFactor>(as_matrix(dense), products == ops::Operand::bfloat16);
  }
  /// For CUDA devices, and activations of that dtype.
  ops::ExpertMatrix matrix(DType x, ops::Operand products) const {
    if (!weight) return {as_matrix(dense), nullptr};
    if (products == ops::Operand::int8) return {{}, weight->on_device()};
    return {{}, weight->for_tensor_cores(x, products == ops::Operand::bfloat16)};
  }
};

FutureFactor dense(Tensor in_by_out) {
  const int64_t in = in_by_out.shape[0];
  const int64_t out = in_by_out.shape[1];
  return {in, out, nullptr, std::move(in_by_out)};
}

Tensor floats(Napi::Value value, const char* name, size_t rank) {
  const Tensor tensor = TensorHandle::get_anywhere(value, name);
  if (tensor.dtype != DType::float32 && tensor.dtype != DType::float16 && tensor.dtype != DType::bfloat16)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", float32, float16 or bfloat16 expected");
  if (tensor.shape.size() != rank)
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", ", rank, " dimensions expected");
  return tensor;
}

void check_device(const Tensor& tensor, const char* name, const Device& device) {
  if (tensor.device != &device)
    fail(ErrorCode::device, name, " is on ", tensor.device->id(), ", x on ", device.id());
}

void refuse_int8(ops::Operand products) {
  if (products == ops::Operand::int8)
    fail(ErrorCode::unsupported, "compute: int8 needs quantized weights, but one is dense");
}

/// Experts as they come from JavaScript: {fc1, fc2}, or gate, up and down, tensors or weights, of one expert
/// after the other in an array. A layer has hundreds of them, which every call takes anew while the layer
/// before is still computed: nothing here may cost more than it must.
class Experts {
 public:
  Experts(Napi::Value experts, ops::Operand products, Device& device) : products_(products), device_(device) {
    if (experts.IsArray())
      take_list(experts.As<Napi::Array>());
    else
      take_stacks(experts);
    for (const Expert& expert : all_) {
      const bool fits = expert.gate.in == hidden() && expert.up.in == hidden() &&
                        expert.down.out == hidden() && expert.gate.out == inter() &&
                        expert.up.out == inter() && expert.down.in == inter();
      if (!fits)
        fail(ErrorCode::shape,
             "experts: gate and up [inter, hidden] and down [hidden, inter] expected, alike for all");
    }
  }

  int64_t count() const { return static_cast<int64_t>(all_.size()); }
  int64_t hidden() const { return all_.empty() ? 0 : all_[0].gate.in; }
  int64_t inter() const { return all_.empty() ? 0 : all_[0].gate.out; }

  /// What products read.
  Storages inputs() const {
    Storages inputs(dense_);
    for (const Expert& expert : all_)
      for (const FutureFactor* factor : {&expert.gate, &expert.up, &expert.down})
        if (factor->weight) inputs.add(factor->weight->tensors);
    return inputs;
  }

  ops::ExpertMatrices matrices(DType x) const {
    const DType between = ops::between_products(x, products_);
    ops::ExpertMatrices matrices;
    for (const Expert& expert : all_) {
      matrices.gate.push_back(expert.gate.matrix(x, products_));
      matrices.up.push_back(expert.up.matrix(x, products_));
      matrices.down.push_back(expert.down.matrix(between, products_));
    }
    return matrices;
  }

  ops::ExpertFactors factors(int64_t e) const {
    const Expert& expert = all_[static_cast<size_t>(e)];
    return {expert.gate.make(products_), expert.up.make(products_), expert.down.make(products_)};
  }

 private:
  struct Expert {
    FutureFactor gate, up, down;
  };

  void take_list(const Napi::Array& matrices) {
    const uint32_t length = matrices.Length();
    if (length % 3 != 0) fail(ErrorCode::argument, "experts: three matrices each expected");
    all_.reserve(length / 3);
    for (uint32_t i = 0; i < length; i += 3)
      all_.push_back(
          {matrix(matrices[i], "gate"), matrix(matrices[i + 1], "up"), matrix(matrices[i + 2], "down")});
  }

  FutureFactor matrix(Napi::Value value, const char* name) {
    if (std::shared_ptr<const StoredWeight> weight = WeightHandle::find(value, name)) {
      check_device(weight->packed, name, device_);
      if (products_ == ops::Operand::int8 && weight->int8_obstacle != nullptr)
        fail(ErrorCode::unsupported, "experts: ", name, ": ", weight->int8_obstacle);
      return {weight->in, weight->out, std::move(weight), {}};
    }
    return dense(transposed(checked(value, name, 2)));
  }

  void take_stacks(Napi::Value experts) {
    const Tensor fc1 = checked(field(experts, "fc1"), "fc1", 3);
    const Tensor fc2 = checked(field(experts, "fc2"), "fc2", 3);
    if (fc1.shape[0] != fc2.shape[0] || fc1.shape[2] % 2 != 0)
      fail(ErrorCode::shape, "fc1 ", to_string(fc1.shape), " and fc2 ", to_string(fc2.shape),
           ", [E, hidden, 2 inter] and [E, inter, hidden] expected");
    const int64_t inter = fc1.shape[2] / 2;
    for (int64_t e = 0; e < fc1.shape[0]; ++e) {
      const Tensor both = select(fc1, 0, e);
      all_.push_back({dense(slice(both, 1, 0, inter)), dense(slice(both, 1, inter, 2 * inter)),
                      dense(select(fc2, 0, e))});
    }
  }

  /// A dense matrix, or a stack of them.
  Tensor checked(Napi::Value value, const char* name, size_t rank) {
    const Tensor tensor = floats(value, name, rank);
    check_device(tensor, name, device_);
    refuse_int8(products_);
    dense_.push_back(tensor);
    return tensor;
  }

  ops::Operand products_;
  Device& device_;
  std::vector<Expert> all_;
  std::vector<Tensor> dense_;
};

Tensor integers(Napi::Value routing, const char* name, int64_t elements, const Device& device) {
  const Tensor tensor = TensorHandle::get_anywhere(field(routing, name), name);
  check_device(tensor, name, device);
  if (tensor.dtype != DType::int32)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", int32 expected");
  if (tensor.elements() != elements || !tensor.contiguous())
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", ", elements, " elements expected");
  return tensor;
}

/// Products index memory by these, so that slots which nobody sorted must not come through.
void check_sorted(const ops::Slots& slots) {
  const int64_t count = slots.tokens * slots.top_k;
  bool sorted = slots.offsets[0] == 0 && slots.offsets[slots.experts] == count;
  for (int64_t e = 0; sorted && e < slots.experts; ++e) sorted = slots.offsets[e] <= slots.offsets[e + 1];
  for (int64_t e = 0; sorted && e < slots.experts; ++e)
    for (int64_t i = slots.offsets[e]; sorted && i < slots.offsets[e + 1]; ++i)
      sorted = slots.order[i] >= 0 && slots.order[i] < count &&
               (i == slots.offsets[e] || slots.order[i - 1] < slots.order[i]);
  if (!sorted) fail(ErrorCode::argument, "routing: order and offsets are not the slots sorted by expert");
}

/// Memory that a CUDA device's queue gives out for a while.
ops::Allocate workspace_of(Device& device) {
  return [&device](int64_t bytes) { return device.allocate(bytes); };
}

/// moeExperts(x, experts, routing, compute): routing with order and offsets as made by moeRoute or
/// moeSortSlots
Napi::Value moe_experts(const Napi::CallbackInfo& info) {
  const Tensor x = floats(info[0], "x", 2);
  Device& device = *x.device;
  const ops::Operand operand = to_operand(info[3]);
  const auto experts = std::make_shared<const Experts>(info[1], operand, device);
  if (x.shape[1] != experts->hidden() && experts->count() > 0)
    fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [T, ", experts->hidden(), "] expected");
  const Tensor weights = TensorHandle::get_anywhere(field(info[2], "weights"), "weights");
  check_device(weights, "weights", device);
  if (weights.dtype != DType::float32 || weights.shape.size() != 2 || weights.shape[0] != x.shape[0] ||
      !weights.contiguous())
    fail(ErrorCode::shape, "weights: ", to_string(weights.shape), ", float32 [T, K] expected");
  const int64_t top_k = weights.shape[1];
  const Tensor order = integers(info[2], "order", weights.elements(), device);
  const Tensor offsets = integers(info[2], "offsets", experts->count() + 1, device);
  Storages inputs = experts->inputs();
  for (const Tensor* tensor : {&x, &weights, &order, &offsets}) inputs.add(*tensor);
  const Tensor y = empty(device, x.dtype, x.shape);
  device.enqueue(std::move(inputs), {y}, [=, &device] {
    if (y.elements() == 0) return;
    const ops::Slots slots{x.shape[0],
                           top_k,
                           experts->count(),
                           order.data_as<int32_t>(),
                           offsets.data_as<int32_t>(),
                           weights.data_as<float>()};
    if (&device != &cpu::device()) {
      cuda::Device& gpu = cuda::of(&device);
      return gpu.kernels().moe.experts(gpu.stream(), as_matrix(x), slots, experts->matrices(x.dtype), operand,
                                       workspace_of(device), as_matrix(y));
    }
    check_sorted(slots);
    ops::experts(
        cpu::device().pool(), as_matrix(x), experts->inter(), slots,
        [&](int64_t e) { return experts->factors(e); },
        [](int64_t bytes) { return cpu::device().allocate(bytes); }, as_matrix(y));
  });
  return TensorHandle::make(info.Env(), y);
}

void grouped_matmul_by_cuda(cuda::Device& device, const Tensor& x, const Tensor& w, const Tensor& counts,
                            ops::Operand operand, const Tensor& y) {
  std::vector<ops::ExpertMatrix> factors;
  for (int64_t e = 0; e < w.shape[0]; ++e) factors.push_back({as_matrix(select(w, 0, e)), nullptr});
  const auto verdict = device.allocate(cuda::kVerdictBytes);
  cuda::clear_verdict(device, verdict->data());
  device.kernels().moe.grouped_matmul(device.stream(), as_matrix(x), counts.data_as<int32_t>(), factors,
                                      operand, verdict->data(), workspace_of(device), as_matrix(y));
  if (cuda::refused(device, verdict->data()))
    ops::check_counts(cuda::values_of(device, counts.data_as<int32_t>(), counts.elements()).data(),
                      counts.elements(), x.shape[0]);
}

/// moeGroupedMatmul(x, w, counts, compute): y [rows, N]
Napi::Value moe_grouped_matmul(const Napi::CallbackInfo& info) {
  const Tensor x = floats(info[0], "x", 2);
  const Tensor w = floats(info[1], "w", 3);
  const Tensor counts = TensorHandle::get_anywhere(info[2], "counts");
  Device& device = *x.device;
  check_device(w, "w", device);
  check_device(counts, "counts", device);
  if (x.shape[1] != w.shape[1])
    fail(ErrorCode::shape, "x ", to_string(x.shape), " and w ", to_string(w.shape),
         ", [rows, K] and [E, K, N] expected");
  if (counts.dtype != DType::int32 || counts.shape.size() != 1 || counts.elements() != w.shape[0] ||
      !counts.contiguous())
    fail(ErrorCode::shape, "counts: ", to_string(counts.shape), ", int32 [", w.shape[0], "] expected");
  if (&device != &cpu::device() && x.shape[0] > std::numeric_limits<int32_t>::max())
    fail(ErrorCode::unsupported, "x: ", x.shape[0], " rows on ", device.id(), ", at most 2^31 - 1 expected");
  const ops::Operand products = to_operand(info[3]);
  refuse_int8(products);
  const Tensor y = empty(device, x.dtype, {x.shape[0], w.shape[2]});
  device.enqueue({x, w, counts}, {y}, [=, &device] {
    if (&device != &cpu::device())
      return grouped_matmul_by_cuda(cuda::of(&device), x, w, counts, products, y);
    const bool bfloat16 = products == ops::Operand::bfloat16;
    std::vector<std::unique_ptr<ops::Factor>> factors;
    for (int64_t e = 0; e < w.shape[0]; ++e)
      factors.push_back(std::make_unique<ops::DenseFactor>(as_matrix(select(w, 0, e)), bfloat16));
    ops::grouped_matmul(cpu::device().pool(), as_matrix(x), counts.data_as<int32_t>(), factors, as_matrix(y));
  });
  return TensorHandle::make(info.Env(), y);
}

}  // namespace

void define_experts(Napi::Env env, Napi::Object exports) {
  exports.Set("moeExperts", Napi::Function::New<guarded<moe_experts>>(env));
  exports.Set("moeGroupedMatmul", Napi::Function::New<guarded<moe_grouped_matmul>>(env));
}

}  // namespace quantaria::addon
