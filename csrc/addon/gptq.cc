#include "addon/gptq.h"

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>
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
#include "cuda/device.h"
#include "ops/gptq/gptq.h"

namespace quantaria::addon {
namespace {

/// The sums of a Hessian: float32 [in, in].
const Tensor& to_products(Napi::Value value) {
  const Tensor& tensor = TensorHandle::get_anywhere(value, "products");
  if (tensor.dtype != DType::float32)
    fail(ErrorCode::dtype, "products: ", name_of(tensor.dtype), ", float32 expected");
  if (tensor.shape.size() != 2 || tensor.shape[0] != tensor.shape[1] || !tensor.contiguous())
    fail(ErrorCode::shape, "products: ", to_string(tensor.shape), ", [in, in] expected");
  return tensor;
}

std::shared_ptr<Storage> scratch(int64_t bytes) { return cpu::device().allocate(bytes); }

bool on_cpu(const Tensor& tensor) { return tensor.device == &cpu::device(); }

void check_same_device(const Tensor& tensor, const char* name, const Tensor& products) {
  if (tensor.device != products.device)
    fail(ErrorCode::device, name, " is on ", tensor.device->id(), ", the Hessian on ", products.device->id());
}

/// For bodies on the queue of a device that is not the CPU.
ops::GptqQueue queue_of(cuda::Device& device) {
  return {device.stream(), [&device](int64_t bytes) { return device.allocate(bytes); },
          [&device](const std::byte* from, std::byte* host, int64_t bytes) {
            device.copy_out(from, host, bytes);
          }};
}

/// hessianUpdate(products, x [..., in]): products += x^T x
Napi::Value hessian_update(const Napi::CallbackInfo& info) {
  const Tensor products = to_products(info[0]);
  const Tensor& x = TensorHandle::get_anywhere(info[1], "x");
  check_same_device(x, "x", products);
  const int64_t in = products.shape[0];
  if (x.shape.empty() || x.shape.back() != in)
    fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [..., ", in, "] expected");
  // A tensor of no elements may claim any number of rows.
  const Tensor rows = reshaped(x, {in == 0 ? 0 : x.elements() / in, in});
  products.device->enqueue({products, x}, {products}, [=] {
    const ConstMatrix states = as_matrix(rows);
    if (on_cpu(products))
      return ops::add_outer_products(cpu::device().pool(), states, products.data_as<float>(), scratch);
    cuda::Device& device = cuda::of(products.device);
    device.kernels().gptq.add_outer_products(device.stream(), states, nullptr, 1, products.data_as<float>());
  });
  return info.Env().Undefined();
}

/// hessianUpdateEach(products [problems, in, in], x [rows, in], counts int32 [problems]): products of each
/// problem += x^T x of its own rows, which follow those of the one before
Napi::Value hessian_update_each(const Napi::CallbackInfo& info) {
  const Tensor products = TensorHandle::get_anywhere(info[0], "products");
  const Tensor x = TensorHandle::get_with(products, info[1], "x");
  const Tensor counts = TensorHandle::get_with(products, info[2], "counts");
  if (products.dtype != DType::float32 || counts.dtype != DType::int32)
    fail(ErrorCode::dtype, "products ", name_of(products.dtype), ", counts ", name_of(counts.dtype),
         ", float32 and int32 expected");
  const Shape& shape = products.shape;
  if (shape.size() != 3 || shape[1] != shape[2] || !products.contiguous())
    fail(ErrorCode::shape, "products: ", to_string(shape), ", [problems, in, in] expected");
  if (x.shape.size() != 2 || x.shape[1] != shape[1])
    fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [rows, ", shape[1], "] expected");
  if (counts.shape != Shape{shape[0]} || !counts.contiguous())
    fail(ErrorCode::shape, "counts: ", to_string(counts.shape), ", [", shape[0], "] expected");
  products.device->enqueue({products, x, counts}, {products}, [=] {
    const auto* const rows = counts.data_as<int32_t>();
    if (on_cpu(products))
      return ops::add_outer_products(cpu::device().pool(), as_matrix(x),
                                     {rows, static_cast<size_t>(shape[0])}, products.data_as<float>(),
                                     scratch);
    cuda::Device& device = cuda::of(products.device);
    device.kernels().gptq.add_outer_products(device.stream(), as_matrix(x), rows, shape[0],
                                             products.data_as<float>());
  });
  return info.Env().Undefined();
}

/// hessianValue(products, samples): float32 [in, in]
Napi::Value hessian_value(const Napi::CallbackInfo& info) {
  const Tensor products = to_products(info[0]);
  const int64_t samples = to_integer(info[1], "samples");
  Tensor value = empty(*products.device, DType::float32, products.shape);
  products.device->enqueue({products}, {value}, [=] {
    if (!on_cpu(products)) {
      cuda::Device& device = cuda::of(products.device);
      return device.kernels().gptq.hessian_of(device.stream(), products.data_as<float>(), products.shape[0],
                                              samples, value.data_as<float>());
    }
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
  check_same_device(from, "from", products);
  const double factor = to_number(info[2], "factor");
  products.device->enqueue({products, from}, {products}, [=] {
    if (!on_cpu(products)) {
      cuda::Device& device = cuda::of(products.device);
      return device.kernels().gptq.add_scaled(device.stream(), from.data_as<float>(),
                                              static_cast<float>(factor), products.elements(),
                                              products.data_as<float>());
    }
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
  explicit Form(Device& device) : device_(device) {}

  Tensor add(const char* name, DType dtype, Shape shape) {
    tensors_.emplace_back(name, empty(device_, dtype, std::move(shape)));
    return tensors_.back().second;
  }
  Napi::Object object(Napi::Env env) const {
    Napi::Object tensors = Napi::Object::New(env);
    for (const auto& [name, tensor] : tensors_) tensors.Set(name, TensorHandle::make(env, tensor));
    return tensors;
  }

 private:
  Device& device_;
  std::vector<std::pair<const char*, Tensor>> tensors_;
};

/// A weight to quantize, and where it goes.
struct Problem {
  Tensor weight;
  Tensor products;
  int64_t samples;
  Tensor beside;  // without storage: none
  Form stored;
  ConstMatrix matrix{};  // of the weight, as its scheme's constants want it

  bool has_beside() const { return beside.storage != nullptr; }
};

/// Solves all problems, in the order in which it was made for them. `inputs` as `problems`.
using Solve = std::function<std::vector<ops::GptqReport>(std::span<const ops::GptqInput> inputs)>;
/// Adds the tensors of the result to each problem's form.
using MakeSolve = Solve (*)(std::span<Problem> problems, Napi::Value scheme, const ops::GptqOptions& options);

/// Weights of one shape side by side, all with one beside them or none, which is what kernels take; one such
/// set after the other.
std::vector<ops::GptqReport> on_device(cuda::Device& device, std::span<const ops::GptqProblem> problems,
                                       const ops::IntScheme& scheme, const ops::GptqOptions& options) {
  std::map<std::tuple<int64_t, int64_t, bool>, std::vector<size_t>> sets;
  for (size_t i = 0; i < problems.size(); ++i) {
    const ConstMatrix& w = problems[i].weight;
    sets[{w.rows, w.cols, problems[i].beside != nullptr}].push_back(i);
  }
  std::vector<ops::GptqReport> reports(problems.size());
  for (const auto& [_, indices] : sets) {
    std::vector<ops::GptqProblem> alike;
    for (const size_t i : indices) alike.push_back(problems[i]);
    const std::vector<ops::GptqReport> found =
        device.kernels().gptq.integers(queue_of(device), alike, scheme, options);
    for (size_t i = 0; i < indices.size(); ++i) reports[indices[i]] = found[i];
  }
  return reports;
}

Solve int_solver(std::span<Problem> problems, Napi::Value scheme, const ops::GptqOptions& options) {
  const ops::IntScheme s = to_int_scheme(scheme);
  const bool indexed = s.granularity == ops::Granularity::group && options.act_order &&
                       !options.group_order && !options.static_groups;
  std::vector<std::pair<IntTensors, Tensor>> to;
  for (Problem& problem : problems) {
    problem.matrix = weight_matrix(problem.weight, s.granularity == ops::Granularity::row);
    const IntTensors tensors = add_int(problem.stored, problem.weight, s);
    const int64_t in = problem.weight.shape[1];
    to.emplace_back(tensors, indexed ? problem.stored.add("groupIndex", DType::int32, {in}) : Tensor{});
  }
  return [=, device = problems[0].weight.device](std::span<const ops::GptqInput> inputs) {
    std::vector<ops::GptqProblem> own;
    for (size_t i = 0; i < inputs.size(); ++i)
      own.push_back({inputs[i], to[i].first.pointers(), pointer<int32_t>(to[i].second)});
    if (device == &cpu::device()) return ops::quantize_gptq(cpu::device().pool(), own, s, options, scratch);
    return on_device(cuda::of(device), own, s, options);
  };
}

/// One after the other. `solve(input, to)` is told where each result goes, which `add(problem)` has made.
template <class Add, class SolveOne>
Solve each(std::span<Problem> problems, Add add, SolveOne solve) {
  std::vector<decltype(add(problems[0]))> to;
  for (Problem& problem : problems) to.push_back(add(problem));
  return [=](std::span<const ops::GptqInput> inputs) {
    std::vector<ops::GptqReport> reports;
    for (size_t i = 0; i < inputs.size(); ++i) reports.push_back(solve(inputs[i], to[i]));
    return reports;
  };
}

Solve codebook_solver(std::span<Problem> problems, Napi::Value scheme, const ops::GptqOptions& options) {
  const ops::CodebookScheme s = to_codebook_scheme(scheme);
  const auto add = [&](Problem& problem) {
    problem.matrix = weight_matrix(problem.weight, false);
    return add_codebook(problem.stored, problem.matrix, s);
  };
  return each(
      problems, add,
      [=, device = problems[0].weight.device](const ops::GptqInput& input, const CodebookTensors& to) {
        if (device == &cpu::device())
          return ops::quantize_gptq(cpu::device().pool(), input, s, to.pointers(), options, scratch);
        cuda::Device& cuda = cuda::of(device);
        return cuda.kernels().gptq.codebook(queue_of(cuda), input, s, to.pointers(), options);
      });
}

Solve fp8_solver(std::span<Problem> problems, Napi::Value scheme, const ops::GptqOptions& options) {
  const ops::Fp8Scheme s = to_fp8_scheme(scheme);
  const auto add = [&](Problem& problem) {
    problem.matrix = weight_matrix(problem.weight, s.per_row);
    return add_fp8(problem.stored, problem.weight, s);
  };
  return each(problems, add,
              [=, device = problems[0].weight.device](const ops::GptqInput& input, const Fp8Tensors& to) {
                if (device == &cpu::device())
                  return ops::quantize_gptq(cpu::device().pool(), input, s, to.pointers(), options, scratch);
                cuda::Device& cuda = cuda::of(device);
                return cuda.kernels().gptq.fp8(queue_of(cuda), input, s, to.pointers(), options);
              });
}

Solve mx_solver(std::span<Problem> problems, Napi::Value scheme, const ops::GptqOptions& options) {
  const ops::MxScheme s = to_mx_scheme(scheme);
  const auto add = [&](Problem& problem) {
    problem.matrix = weight_matrix(problem.weight, s.pre_scale);
    return add_mx(problem.stored, problem.weight, s);
  };
  return each(problems, add,
              [=, device = problems[0].weight.device](const ops::GptqInput& input, const MxTensors& to) {
                if (device == &cpu::device())
                  return ops::quantize_gptq(cpu::device().pool(), input, s, to.pointers(), options, scratch);
                cuda::Device& cuda = cuda::of(device);
                return cuda.kernels().gptq.mx(queue_of(cuda), input, s, to.pointers(), options);
              });
}

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

Problem to_problem(Napi::Value value) {
  const Tensor w = TensorHandle::get_anywhere(field(value, "weight"), "weight");
  if (w.shape.size() != 2) fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", [out, in] expected");
  const Tensor products = to_products(field(value, "products"));
  if (products.shape[0] != w.shape[1])
    fail(ErrorCode::shape, "hessian: of ", products.shape[0], " columns, ", w.shape[1], " expected");
  check_same_device(w, "weight", products);
  Problem problem{w, products, to_integer(field(value, "samples"), "samples"), Tensor{}, Form(*w.device)};
  const Napi::Value beside = field(value, "beside");
  if (beside.IsNull() || beside.IsUndefined()) return problem;
  problem.beside = TensorHandle::get_anywhere(beside, "beside");
  if (problem.beside.shape != w.shape)
    fail(ErrorCode::shape, "beside: ", to_string(problem.beside.shape), ", ", to_string(w.shape),
         " expected");
  check_same_device(problem.beside, "beside", products);
  return problem;
}

/// The first failure of what the problems read.
std::shared_ptr<const Error> failure_before(const std::vector<Problem>& problems) {
  for (const Problem& problem : problems) {
    std::shared_ptr<const Error> failure = problem.weight.storage->failure();
    if (!failure) failure = problem.products.storage->failure();
    if (!failure && problem.has_beside()) failure = problem.beside.storage->failure();
    if (failure) return failure;
  }
  return nullptr;
}

/// gptqQuantize([{weight, products, samples, beside [out, in] | null}], scheme, options): a promise of
/// [{stored, error, weight, beside, damping, attempts, deadColumns}]. All of one device, at least one.
Napi::Value gptq_quantize(const Napi::CallbackInfo& info) {
  std::vector<Problem> problems;
  const auto list = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    problems.push_back(to_problem(list.Get(i)));
    check_same_device(problems.back().weight, "weight", problems.front().products);
  }
  if (problems.empty()) fail(ErrorCode::argument, "problems: none came");
  Device& device = *problems.front().weight.device;
  const Solve solve = solver_of(info[1])(problems, info[1], to_options(info[2]));

  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto reports = std::make_shared<std::vector<ops::GptqReport>>();
  device.post([=, &device, settle = settle] {
    std::shared_ptr<const Error> failure = failure_before(problems);
    device.told(failure);
    if (!failure)
      failure = failure_of([&] {
        std::vector<ConstMatrix> besides(problems.size());
        std::vector<ops::GptqInput> inputs;
        for (size_t i = 0; i < problems.size(); ++i) {
          const Problem& problem = problems[i];
          if (problem.has_beside()) besides[i] = as_matrix(problem.beside);
          inputs.push_back({problem.matrix, problem.products.data_as<float>(), problem.samples,
                            problem.has_beside() ? &besides[i] : nullptr});
        }
        *reports = solve(inputs);
      });
    settle(failure, [=](Napi::Env env) {
      Napi::Array results = Napi::Array::New(env, problems.size());
      for (size_t i = 0; i < problems.size(); ++i) {
        const ops::GptqReport& report = (*reports)[i];
        Napi::Object result = Napi::Object::New(env);
        result.Set("stored", problems[i].stored.object(env));
        result.Set("error", report.error);
        result.Set("weight", report.weight);
        result.Set("beside", report.beside);
        result.Set("damping", report.damping);
        result.Set("attempts", static_cast<double>(report.attempts));
        result.Set("deadColumns", static_cast<double>(report.dead_columns));
        results.Set(static_cast<uint32_t>(i), result);
      }
      return Napi::Value(results);
    });
  });
  return promise;
}

/// outputError(weight, values | null, products): a promise of tr((weight - values) products (weight -
/// values)^T)
Napi::Value output_error(const Napi::CallbackInfo& info) {
  const Tensor w = TensorHandle::get_anywhere(info[0], "weight");
  const bool has_values = !info[1].IsNull() && !info[1].IsUndefined();
  const Tensor values = has_values ? TensorHandle::get_anywhere(info[1], "values") : Tensor{};
  const Tensor products = to_products(info[2]);
  if (w.shape.size() != 2 || w.shape[1] != products.shape[0])
    fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", [out, ", products.shape[0], "] expected");
  if (has_values && values.shape != w.shape)
    fail(ErrorCode::shape, "values: ", to_string(values.shape), ", ", to_string(w.shape), " expected");
  check_same_device(w, "weight", products);
  if (has_values) check_same_device(values, "values", products);
  Device& device = *w.device;
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto result = std::make_shared<double>(0);
  device.post([=, &device, settle = settle] {
    std::shared_ptr<const Error> failure = w.storage->failure();
    if (!failure && has_values) failure = values.storage->failure();
    if (!failure) failure = products.storage->failure();
    device.told(failure);
    if (!failure)
      failure = failure_of([&] {
        const ConstMatrix a = as_matrix(w);
        const ConstMatrix b = has_values ? as_matrix(values) : a;
        if (!on_cpu(w)) {
          cuda::Device& cuda = cuda::of(&device);
          *result = cuda.kernels().gptq.output_error(queue_of(cuda), a, has_values ? &b : nullptr,
                                                     products.data_as<float>());
          return;
        }
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
  exports.Set("hessianUpdateEach", Napi::Function::New<guarded<hessian_update_each>>(env));
  exports.Set("hessianValue", Napi::Function::New<guarded<hessian_value>>(env));
  exports.Set("hessianAdd", Napi::Function::New<guarded<hessian_add>>(env));
  exports.Set("outputError", Napi::Function::New<guarded<output_error>>(env));
  exports.Set("gptqQuantize", Napi::Function::New<guarded<gptq_quantize>>(env));
}

}  // namespace quantaria::addon
