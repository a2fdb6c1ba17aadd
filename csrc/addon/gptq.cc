#include "addon/gptq.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/scheme.h"
#include "addon/tensor_handle.h"
#include "core/attempt.h"
#include "core/device.h"
#include "cpu/device.h"
#include "ops/bitpack/bitpack.h"
#include "ops/gptq/gptq.h"

namespace quantaria::addon {
namespace {

/// The sums of a Hessian: float32 [in, in].
const Tensor& to_products(Napi::Value value) {
  const Tensor& tensor = TensorHandle::get(value, "products");
  if (tensor.dtype != DType::float32)
    fail(ErrorCode::dtype, "products: ", name_of(tensor.dtype), ", float32 expected");
  if (tensor.shape.size() != 2 || tensor.shape[0] != tensor.shape[1] || !tensor.contiguous())
    fail(ErrorCode::shape, "products: ", to_string(tensor.shape), ", [in, in] expected");
  return tensor;
}

std::shared_ptr<Storage> scratch(int64_t bytes) { return cpu::device().allocate(bytes); }

/// hessianUpdate(products, x [..., in]): products += x^T x
Napi::Value hessian_update(const Napi::CallbackInfo& info) {
  const Tensor products = to_products(info[0]);
  const Tensor& x = TensorHandle::get(info[1], "x");
  const int64_t in = products.shape[0];
  if (x.shape.empty() || x.shape.back() != in)
    fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [..., ", in, "] expected");
  // A tensor of no elements may claim any number of rows.
  const Tensor rows = reshaped(x, {in == 0 ? 0 : x.elements() / in, in});
  cpu::device().enqueue({products, x}, {products}, [=] {
    ops::add_outer_products(cpu::device().pool(), as_matrix(rows), products.data_as<float>(), scratch);
  });
  return info.Env().Undefined();
}

/// hessianValue(products, samples): float32 [in, in]
Napi::Value hessian_value(const Napi::CallbackInfo& info) {
  const Tensor products = to_products(info[0]);
  const int64_t samples = to_integer(info[1], "samples");
  Tensor value = empty(cpu::device(), DType::float32, products.shape);
  cpu::device().enqueue({products}, {value}, [=] {
    ops::hessian_of(cpu::device().pool(), products.data_as<float>(), products.shape[0], samples,
                    value.data_as<float>());
  });
  return TensorHandle::make(info.Env(), std::move(value));
}

ops::GptqOptions to_options(Napi::Value value) {
  ops::GptqOptions options;
  options.act_order = to_bool(field(value, "actOrder"), "actOrder");
  options.static_groups = to_bool(field(value, "staticGroups"), "staticGroups");
  const Napi::Value damping = field(value, "damping");
  if (!damping.IsNumber()) fail(ErrorCode::argument, "damping: a number expected");
  options.damping = damping.As<Napi::Number>().DoubleValue();
  options.block_size = to_integer(field(value, "blockSize"), "blockSize", 1);
  return options;
}

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.storage ? tensor.data_as<T>() : nullptr;
}

/// gptqQuantize(weight, products, samples, scheme, options): a promise of {stored, error, weight, damping,
/// attempts, deadColumns}
Napi::Value gptq_quantize(const Napi::CallbackInfo& info) {
  const Tensor w = TensorHandle::get(info[0], "weight");
  if (w.shape.size() != 2) fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", [out, in] expected");
  const Tensor products = to_products(info[1]);
  if (products.shape[0] != w.shape[1])
    fail(ErrorCode::shape, "hessian: of ", products.shape[0], " columns, ", w.shape[1], " expected");
  const int64_t samples = to_integer(info[2], "samples");
  const ops::IntScheme scheme = to_int_scheme(info[3]);
  const ops::GptqOptions options = to_options(info[4]);

  ConstMatrix m = as_matrix(w);
  // A matrix may claim 2^50 rows without columns: where those have no constants, there is nothing to do.
  if (m.cols == 0 && scheme.granularity != ops::Granularity::row) m.rows = 0;
  const ops::ConstantsShape constants = ops::constants_shape(scheme, w.shape[0], w.shape[1]);
  std::vector<std::pair<const char*, Tensor>> stored;
  const auto add = [&](const char* name, DType dtype, Shape shape) {
    stored.emplace_back(name, empty(cpu::device(), dtype, std::move(shape)));
    return stored.back().second;
  };
  const Tensor packed =
      add("packed", DType::uint8, {w.shape[0], ops::packed_row_bytes(w.shape[1], scheme.bits)});
  const Tensor scales = add("scales", DType::float32, {constants.rows, constants.cols});
  const Tensor zeros =
      scheme.symmetric ? Tensor{} : add("zeros", DType::int32, {constants.rows, constants.cols});
  const bool indexed =
      scheme.granularity == ops::Granularity::group && options.act_order && !options.static_groups;
  const Tensor group_index = indexed ? add("groupIndex", DType::int32, {w.shape[1]}) : Tensor{};

  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto report = std::make_shared<ops::GptqReport>();
  cpu::device().post([=, settle = settle] {
    std::shared_ptr<const Error> failure = w.storage->failure();
    if (!failure) failure = products.storage->failure();
    cpu::device().told(failure);
    if (!failure)
      failure = failure_of([&] {
        const ops::GptqProblem problem{
            m,
            products.data_as<float>(),
            samples,
            {pointer<uint8_t>(packed), pointer<float>(scales), pointer<int32_t>(zeros)},
            pointer<int32_t>(group_index)};
        *report = ops::quantize_gptq(cpu::device().pool(), problem, scheme, options, scratch);
      });
    settle(failure, [=](Napi::Env env) {
      Napi::Object tensors = Napi::Object::New(env);
      for (const auto& [name, tensor] : stored) tensors.Set(name, TensorHandle::make(env, tensor));
      Napi::Object result = Napi::Object::New(env);
      result.Set("stored", tensors);
      result.Set("error", report->error);
      result.Set("weight", report->weight);
      result.Set("damping", report->damping);
      result.Set("attempts", static_cast<double>(report->attempts));
      result.Set("deadColumns", static_cast<double>(report->dead_columns));
      return Napi::Value(result);
    });
  });
  return promise;
}

}  // namespace

void define_gptq(Napi::Env env, Napi::Object exports) {
  exports.Set("hessianUpdate", Napi::Function::New<guarded<hessian_update>>(env));
  exports.Set("hessianValue", Napi::Function::New<guarded<hessian_value>>(env));
  exports.Set("gptqQuantize", Napi::Function::New<guarded<gptq_quantize>>(env));
}

}  // namespace quantaria::addon
