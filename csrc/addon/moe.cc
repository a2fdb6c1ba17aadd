#include "addon/moe.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/refusal.h"
#include "ops/moe/route.h"
#include "ops/quantize/weight.h"

namespace quantaria::addon {
namespace {

constexpr int64_t kMaxSlots = std::numeric_limits<int32_t>::max();

int64_t to_number_of_slots(int64_t tokens, int64_t top_k, const char* name) {
  if (tokens > kMaxSlots / std::max<int64_t>(1, top_k))
    fail(ErrorCode::shape, name, ": ", tokens, " tokens for ", top_k,
         " experts each are more than 2^31 slots");
  return tokens * top_k;
}

/// counts, offsets and order of a routing, as tensors and as their pointers.
struct Slots {
  Slots(Device& device, int64_t slots, int64_t experts)
      : counts(empty(device, DType::int32, {experts})),
        offsets(empty(device, DType::int32, {experts + 1})),
        order(empty(device, DType::int32, {slots})) {}
  ops::SlotOrder pointers() const {
    return {counts.data_as<int32_t>(), offsets.data_as<int32_t>(), order.data_as<int32_t>()};
  }
  void put(Napi::Object to) const {
    to.Set("counts", TensorHandle::make(to.Env(), counts));
    to.Set("offsets", TensorHandle::make(to.Env(), offsets));
    to.Set("order", TensorHandle::make(to.Env(), order));
  }
  Tensor counts, offsets, order;
};

void route_by_cuda(cuda::Device& device, const Tensor& logits, const ops::RouteOptions& options,
                   const Tensor& indices, const Tensor& weights, const Slots& slots) {
  const ops::MoeLaunchers& kernels = device.kernels().moe;
  const auto workspace = device.allocate(kernels.sort_workspace(indices.elements(), logits.shape[1]));
  kernels.route(device.stream(), as_matrix(logits), options, indices.data_as<int32_t>(),
                weights.data_as<float>(), slots.pointers(), workspace->data());
}

void sort_slots_by_cuda(cuda::Device& device, const Tensor& indices, int64_t experts, const Slots& slots) {
  const ops::MoeLaunchers& kernels = device.kernels().moe;
  const int64_t count = indices.elements();
  const auto workspace = device.allocate(kernels.sort_workspace(count, experts));
  const auto verdict = device.allocate(cuda::kVerdictBytes);
  cuda::clear_verdict(device, verdict->data());
  kernels.sort_slots(device.stream(), indices.data_as<int32_t>(), count, experts, slots.pointers(),
                     verdict->data(), workspace->data());
  if (cuda::refused(device, verdict->data()))
    ops::check_indices(cuda::values_of(device, indices.data_as<int32_t>(), count).data(), count,
                       indices.shape[1], experts);
}

/// moeRoute(logits, topK, softmaxFirst, normalize, scale, groups, topGroups): {indices, weights, counts,
/// offsets, order}
Napi::Value moe_route(const Napi::CallbackInfo& info) {
  const Tensor logits = TensorHandle::get_anywhere(info[0], "logits");
  if (logits.shape.size() != 2)
    fail(ErrorCode::shape, "logits: ", to_string(logits.shape), ", [T, E] expected");
  ops::check_weight(as_matrix(logits), "logits");
  const int64_t experts = logits.shape[1];
  ops::RouteOptions options;
  options.top_k = to_integer(info[1], "topK", 1, std::min(experts, kMaxSlots - 1));
  options.softmax_first = to_bool(info[2], "order");
  options.normalize = to_bool(info[3], "normalize");
  options.scale = to_number(info[4], "scale");
  options.groups = to_integer(info[5], "groups", 1, ops::kMaxRouteGroups);
  options.top_groups = to_integer(info[6], "topGroups", 1, options.groups);
  ops::check_route(options, experts);
  const int64_t tokens = logits.shape[0];
  Device& device = *logits.device;
  const Slots slots(device, to_number_of_slots(tokens, options.top_k, "logits"), experts);
  const Tensor indices = empty(device, DType::int32, {tokens, options.top_k});
  const Tensor weights = empty(device, DType::float32, {tokens, options.top_k});
  device.enqueue({logits}, {indices, weights, slots.counts, slots.offsets, slots.order}, [=, &device] {
    if (&device != &cpu::device())
      return route_by_cuda(cuda::of(&device), logits, options, indices, weights, slots);
    ops::route(cpu::device().pool(), as_matrix(logits), options, indices.data_as<int32_t>(),
               weights.data_as<float>(), slots.pointers());
  });
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("indices", TensorHandle::make(info.Env(), indices));
  result.Set("weights", TensorHandle::make(info.Env(), weights));
  slots.put(result);
  return result;
}

/// moeSortSlots(indices, experts): {counts, offsets, order}
Napi::Value moe_sort_slots(const Napi::CallbackInfo& info) {
  const Tensor indices = TensorHandle::get_anywhere(info[0], "indices");
  if (indices.dtype != DType::int32)
    fail(ErrorCode::dtype, "indices: ", name_of(indices.dtype), ", int32 expected");
  if (indices.shape.size() != 2 || !indices.contiguous())
    fail(ErrorCode::shape, "indices: ", to_string(indices.shape), ", contiguous [T, K] expected");
  const int64_t experts = to_integer(info[1], "experts", 0, kMaxSlots - 1);
  const int64_t top_k = indices.shape[1];
  const int64_t count = to_number_of_slots(indices.shape[0], top_k, "indices");
  Device& device = *indices.device;
  const Slots slots(device, count, experts);
  device.enqueue({indices}, {slots.counts, slots.offsets, slots.order}, [=, &device] {
    if (&device != &cpu::device()) return sort_slots_by_cuda(cuda::of(&device), indices, experts, slots);
    ops::sort_slots(indices.data_as<int32_t>(), count, top_k, experts, slots.pointers());
  });
  Napi::Object result = Napi::Object::New(info.Env());
  slots.put(result);
  return result;
}

}  // namespace

void define_moe(Napi::Env env, Napi::Object exports) {
  exports.Set("moeRoute", Napi::Function::New<guarded<moe_route>>(env));
  exports.Set("moeSortSlots", Napi::Function::New<guarded<moe_sort_slots>>(env));
}

}  // namespace quantaria::addon
