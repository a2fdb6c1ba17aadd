#include "addon/gptq.h"

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/scheme.h"
#include "addon/stored_form.h"
#include "addon/tensor_handle.h"
#include "core/attempt.h"
#include "core/device.h"
#include "cpu/device.h"
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

/// hessianAdd(products, from, factor): products += factor * from
Napi::Value hessian_add(const Napi::CallbackInfo& info) {
  const Tensor products = to_products(info[0]);
  const Tensor from = to_products(info[1]);
  if (from.shape != products.shape)
    fail(ErrorCode::shape, "from: ", to_string(from.shape), ", ", to_string(products.shape), " expected");
  const double factor = to_number(info[2], "factor");
  cpu::device().enqueue({products, from}, {products}, [=] {
    ops::add_scaled(cpu::device().pool(), from.data_as<float>(), static_cast<float>(factor),
                    products.elements(), products.data_as<float>());
  });
  return info.Env().Undefined();
}

ops::GptqOptions to_options(Napi::Value value) {
  ops::GptqOptions options;
  options.act_order = to_bool(field(value, "actOrder"), "actOrder");
  options.group_order = to_bool(field(value, "groupAware"), "groupAware");
  options.static_groups = to_bool(field(value, "staticGroups"), "staticGroups");
  const Napi::Value damping = field(value, "damping");
  if (!damping.IsNumber()) fail(ErrorCode::argument, "damping: a number expected");
  options.damping = damping.As<Napi::Number>().DoubleValue();
  options.block_size = to_integer(field(value, "blockSize"), "blockSize", 1);
  return options;
}

/// The tensors of a stored form, handed out when they are filled.
class Form {
 public:
  Tensor add(const char* name, DType dtype, Shape shape) {
    tensors_.emplace_back(name, empty(cpu::device(), dtype, std::move(shape)));
    return tensors_.back().second;
  }
  Napi::Object object(Napi::Env env) const {
    Napi::Object tensors = Napi::Object::New(env);
    for (const auto& [name, tensor] : tensors_) tensors.Set(name, TensorHandle::make(env, tensor));
    return tensors;
  }

 private:
  std::vector<std::pair<const char*, Tensor>> tensors_;
};

using Solve =
    std::function<ops::GptqReport(const float* products, int64_t samples, const ConstMatrix* beside)>;

Solve int_solver(const Tensor& w, Napi::Value scheme, const ops::GptqOptions& options, Form& form) {
  const ops::IntScheme s = to_int_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, s.granularity == ops::Granularity::row);
  const IntTensors to = add_int(form, w, s);
  const bool indexed = s.granularity == ops::Granularity::group && options.act_order &&
                       !options.group_order && !options.static_groups;
  const Tensor index = indexed ? form.add("groupIndex", DType::int32, {w.shape[1]}) : Tensor{};
  return [=](const float* products, int64_t samples, const ConstMatrix* beside) {
    const ops::GptqProblem problem{{m, products, samples, beside}, to.pointers(), pointer<int32_t>(index)};
    return ops::quantize_gptq(cpu::device().pool(), problem, s, options, scratch);
  };
}

Solve codebook_solver(const Tensor& w, Napi::Value scheme, const ops::GptqOptions& options, Form& form) {
  const ops::CodebookScheme s = to_codebook_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, false);
  const CodebookTensors to = add_codebook(form, m, s);
  return [=](const float* products, int64_t samples, const ConstMatrix* beside) {
    return ops::quantize_gptq(cpu::device().pool(), {m, products, samples, beside}, s, to.pointers(), options,
                              scratch);
  };
}

Solve fp8_solver(const Tensor& w, Napi::Value scheme, const ops::GptqOptions& options, Form& form) {
  const ops::Fp8Scheme s = to_fp8_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, s.per_row);
  const Fp8Tensors to = add_fp8(form, w, s);
  return [=](const float* products, int64_t samples, const ConstMatrix* beside) {
    return ops::quantize_gptq(cpu::device().pool(), {m, products, samples, beside}, s, to.pointers(), options,
                              scratch);
  };
}

Solve mx_solver(const Tensor& w, Napi::Value scheme, const ops::GptqOptions& options, Form& form) {
  const ops::MxScheme s = to_mx_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, s.pre_scale);
  const MxTensors to = add_mx(form, w, s);
  return [=](const float* products, int64_t samples, const ConstMatrix* beside) {
    return ops::quantize_gptq(cpu::device().pool(), {m, products, samples, beside}, s, to.pointers(), options,
                              scratch);
  };
}

using MakeSolve = Solve (*)(const Tensor&, Napi::Value, const ops::GptqOptions&, Form&);

MakeSolve solver_of(Napi::Value scheme) {
  return choice<MakeSolve>(field(scheme, "kind"), "kind",
                           {{"int", int_solver},
                            {"nf4", codebook_solver},
                            {"fp4", codebook_solver},
                            {"e3m0", codebook_solver},
                            {"dynamic8", codebook_solver},
                            {"fp8", fp8_solver},
                            {"mx", mx_solver}});
}

/// gptqQuantize(weight, products, samples, scheme, options, beside [out, in] | null): a promise of {stored,
/// error, weight, beside, damping, attempts, deadColumns}
Napi::Value gptq_quantize(const Napi::CallbackInfo& info) {
  const Tensor w = TensorHandle::get(info[0], "weight");
  if (w.shape.size() != 2) fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", [out, in] expected");
  const Tensor products = to_products(info[1]);
  if (products.shape[0] != w.shape[1])
    fail(ErrorCode::shape, "hessian: of ", products.shape[0], " columns, ", w.shape[1], " expected");
  const int64_t samples = to_integer(info[2], "samples");
  const bool has_beside = !info[5].IsNull() && !info[5].IsUndefined();
  const Tensor beside = has_beside ? TensorHandle::get(info[5], "beside") : Tensor{};
  if (has_beside && beside.shape != w.shape)
    fail(ErrorCode::shape, "beside: ", to_string(beside.shape), ", ", to_string(w.shape), " expected");
  Form stored;
  const Solve solve = solver_of(info[3])(w, info[3], to_options(info[4]), stored);

  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto report = std::make_shared<ops::GptqReport>();
  cpu::device().post([=, settle = settle] {
    std::shared_ptr<const Error> failure = w.storage->failure();
    if (!failure) failure = products.storage->failure();
    if (!failure && has_beside) failure = beside.storage->failure();
    cpu::device().told(failure);
    if (!failure)
      failure = failure_of([&] {
        const ConstMatrix other = has_beside ? as_matrix(beside) : ConstMatrix{};
        *report = solve(products.data_as<float>(), samples, has_beside ? &other : nullptr);
      });
    settle(failure, [=](Napi::Env env) {
      Napi::Object result = Napi::Object::New(env);
      result.Set("stored", stored.object(env));
      result.Set("error", report->error);
      result.Set("weight", report->weight);
      result.Set("beside", report->beside);
      result.Set("damping", report->damping);
      result.Set("attempts", static_cast<double>(report->attempts));
      result.Set("deadColumns", static_cast<double>(report->dead_columns));
      return Napi::Value(result);
    });
  });
  return promise;
}

/// outputError(weight, values | null, products): a promise of tr((weight - values) products (weight -
/// values)^T)
Napi::Value output_error(const Napi::CallbackInfo& info) {
  const Tensor w = TensorHandle::get(info[0], "weight");
  const bool has_values = !info[1].IsNull() && !info[1].IsUndefined();
  const Tensor values = has_values ? TensorHandle::get(info[1], "values") : Tensor{};
  const Tensor products = to_products(info[2]);
  if (w.shape.size() != 2 || w.shape[1] != products.shape[0])
    fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", [out, ", products.shape[0], "] expected");
  if (has_values && values.shape != w.shape)
    fail(ErrorCode::shape, "values: ", to_string(values.shape), ", ", to_string(w.shape), " expected");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto result = std::make_shared<double>(0);
  cpu::device().post([=, settle = settle] {
    std::shared_ptr<const Error> failure = w.storage->failure();
    if (!failure && has_values) failure = values.storage->failure();
    if (!failure) failure = products.storage->failure();
    cpu::device().told(failure);
    if (!failure)
      failure = failure_of([&] {
        const ConstMatrix a = as_matrix(w);
        const ConstMatrix b = has_values ? as_matrix(values) : a;
        *result =
            ops::output_error(cpu::device().pool(), a, has_values ? &b : nullptr, products.data_as<float>(),
                              [](int64_t bytes) { return cpu::device().allocate(bytes); });
      });
    settle(failure, [result](Napi::Env env) { return Napi::Value(Napi::Number::New(env, *result)); });
  });
  return promise;
}

}  // namespace

void define_gptq(Napi::Env env, Napi::Object exports) {
  exports.Set("hessianUpdate", Napi::Function::New<guarded<hessian_update>>(env));
  exports.Set("hessianValue", Napi::Function::New<guarded<hessian_value>>(env));
  exports.Set("hessianAdd", Napi::Function::New<guarded<hessian_add>>(env));
  exports.Set("outputError", Napi::Function::New<guarded<output_error>>(env));
  exports.Set("gptqQuantize", Napi::Function::New<guarded<gptq_quantize>>(env));
}

}  // namespace quantaria::addon
