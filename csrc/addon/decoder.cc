#include "addon/decoder.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/refusal.h"
#include "ops/decoder/decoder.h"

namespace quantaria::addon {
namespace {

/// No extent of a decoder is longer, so that products of a few do not overflow.
constexpr int64_t kMaxExtent = int64_t{1} << 20;

void check_float(const Tensor& tensor, const char* name) {
  if (tensor.dtype != DType::float32 && tensor.dtype != DType::float16 && tensor.dtype != DType::bfloat16)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", float32, float16 or bfloat16 expected");
}

/// A contiguous matrix of float values.
Tensor matrix(Napi::Value value, const char* name, int64_t columns = -1) {
  const Tensor tensor = TensorHandle::get_anywhere(value, name);
  check_float(tensor, name);
  if (tensor.shape.size() != 2 || !tensor.contiguous() || (columns >= 0 && tensor.shape[1] != columns))
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", contiguous rows of ",
         columns < 0 ? "one width" : std::to_string(columns), " expected");
  return tensor;
}

Tensor vector(Napi::Value value, const char* name, DType dtype, int64_t size) {
  const Tensor tensor = TensorHandle::get_anywhere(value, name);
  if (tensor.dtype != dtype) fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), " came");
  if (tensor.elements() != size || !tensor.contiguous())
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", ", size, " elements expected");
  return tensor;
}

int64_t extent(Napi::Value options, const char* name, int64_t min = 1) {
  return to_integer(field(options, name), name, min, kMaxExtent);
}

Tensor like(const Tensor& x) { return empty(*x.device, x.dtype, x.shape); }

/// y of inputs that all live where the first one does: by the kernels of that device.
void enqueue(std::vector<Tensor> inputs, const Tensor& y, std::function<void(ThreadPool&)> by_cpu,
             std::function<void(cuda::Device&)> by_cuda) {
  Device& device = *y.device;
  for (const Tensor& input : inputs)
    if (input.device != &device)
      fail(ErrorCode::device, "one tensor is on ", input.device->id(), ", another on ", device.id());
  device.enqueue(std::move(inputs), {y}, [=, &device] {
    &device == &cpu::device() ? by_cpu(cpu::device().pool()) : by_cuda(cuda::of(&device));
  });
}

void check_same(const Tensor& a, const Tensor& b) {
  if (a.shape != b.shape)
    fail(ErrorCode::shape, to_string(a.shape), " and ", to_string(b.shape), ", the same shape expected");
}

void check_ids_of(cuda::Device& gpu, const Storage& verdict, const Tensor& ids, int64_t vocabulary) {
  if (cuda::refused(gpu, verdict.data()))
    ops::check_ids(cuda::values_of(gpu, ids.data_as<int32_t>(), ids.elements()).data(), ids.elements(),
                   vocabulary);
}

/// rmsNorm(x, gain, eps)
Napi::Value rms_norm(const Napi::CallbackInfo& info) {
  const Tensor x = matrix(info[0], "x");
  const Tensor& gain = TensorHandle::get_anywhere(info[1], "gain");
  const Tensor gains = vector(info[1], "gain", gain.dtype, x.shape[1]);
  check_float(gains, "gain");
  const auto eps = static_cast<float>(to_number(info[2], "eps"));
  const Tensor y = like(x);
  enqueue(
      {x, gains}, y,
      [=](ThreadPool& pool) {
        if (y.elements() != 0) ops::rms_norm(pool, as_matrix(x), as_matrix(gains), eps, as_matrix(y));
      },
      [=](cuda::Device& gpu) {
        gpu.kernels().decoder.rms_norm(gpu.stream(), as_matrix(x), as_matrix(gains), eps, as_matrix(y));
      });
  return TensorHandle::make(info.Env(), y);
}

/// rotate(x, cosines, sines, {heads, headDim, offset, dims, interleaved, sequence, first})
Napi::Value rotate(const Napi::CallbackInfo& info) {
  ops::Rotary rotary;
  rotary.heads = extent(info[3], "heads");
  rotary.head_dim = extent(info[3], "headDim");
  rotary.offset = extent(info[3], "offset", 0);
  rotary.dims = extent(info[3], "dims");
  rotary.interleaved = to_bool(field(info[3], "interleaved"), "interleaved");
  rotary.sequence = extent(info[3], "sequence");
  rotary.first = extent(info[3], "first", 0);
  if (rotary.dims % 2 != 0 || rotary.offset + rotary.dims > rotary.head_dim)
    fail(ErrorCode::shape, "dims: ", rotary.dims, " from ", rotary.offset, " on in heads of ",
         rotary.head_dim);
  const Tensor x = matrix(info[0], "x", rotary.heads * rotary.head_dim);
  const int64_t positions = rotary.first + std::min(rotary.sequence, x.shape[0]);
  const int64_t table = positions * (rotary.dims / 2);
  const Tensor cosines = TensorHandle::get_anywhere(info[1], "cosines");
  const Tensor sines = vector(info[2], "sines", DType::float32, cosines.elements());
  if (cosines.dtype != DType::float32 || !cosines.contiguous() || cosines.elements() < table)
    fail(ErrorCode::shape, "cosines: ", to_string(cosines.shape), ", float32 for ", positions,
         " positions expected");
  const Tensor y = like(x);
  const auto [cosine, sine] = std::pair(cosines.data_as<float>(), sines.data_as<float>());
  enqueue(
      {x, cosines, sines}, y,
      [=](ThreadPool& pool) { ops::rotate(pool, as_matrix(x), cosine, sine, rotary, as_matrix(y)); },
      [=](cuda::Device& gpu) {
        gpu.kernels().decoder.rotate(gpu.stream(), as_matrix(x), cosine, sine, rotary, as_matrix(y));
      });
  return TensorHandle::make(info.Env(), y);
}

/// attend(q, k, v, {sequences, queries, keys, heads, kvHeads, keyDim, valueDim, scale, window})
Napi::Value attend(const Napi::CallbackInfo& info) {
  const Napi::Value options = info[3];
  ops::Attention a;
  a.sequences = extent(options, "sequences", 0);
  a.queries = extent(options, "queries", 0);
  a.keys = extent(options, "keys", 0);
  a.heads = extent(options, "heads");
  a.kv_heads = extent(options, "kvHeads");
  a.key_dim = extent(options, "keyDim");
  a.value_dim = extent(options, "valueDim");
  a.scale = static_cast<float>(to_number(field(options, "scale"), "scale"));
  a.window = extent(options, "window", 0);
  if (a.heads % a.kv_heads != 0 || a.queries > a.keys)
    fail(ErrorCode::shape, "attention of ", a.heads, " heads over ", a.kv_heads, ", ", a.queries,
         " queries of ", a.keys, " keys");
  const Tensor q = matrix(info[0], "q", a.heads * a.key_dim);
  const Tensor k = matrix(info[1], "k", a.kv_heads * a.key_dim);
  const Tensor v = matrix(info[2], "v", a.kv_heads * a.value_dim);
  if (q.shape[0] != a.sequences * a.queries || k.shape[0] != a.sequences * a.keys || v.shape[0] != k.shape[0])
    fail(ErrorCode::shape, "q ", to_string(q.shape), ", k ", to_string(k.shape), ", v ", to_string(v.shape),
         " for ", a.sequences, " sequences");
  const Tensor y = empty(*q.device, q.dtype, {q.shape[0], a.heads * a.value_dim});
  enqueue(
      {q, k, v}, y,
      [=](ThreadPool& pool) { ops::attend(pool, as_matrix(q), as_matrix(k), as_matrix(v), a, as_matrix(y)); },
      [=](cuda::Device& gpu) {
        gpu.kernels().decoder.attend(gpu.stream(), as_matrix(q), as_matrix(k), as_matrix(v), a, as_matrix(y));
      });
  return TensorHandle::make(info.Env(), y);
}

/// embed(table, ids, dtype)
Napi::Value embed(const Napi::CallbackInfo& info) {
  const Tensor table = matrix(info[0], "table");
  const Tensor ids =
      vector(info[1], "ids", DType::int32, TensorHandle::get_anywhere(info[1], "ids").elements());
  const Tensor y = empty(*table.device, to_dtype(info[2], "dtype"), {ids.elements(), table.shape[1]});
  check_float(y, "dtype");
  enqueue(
      {table, ids}, y,
      [=](ThreadPool& pool) { ops::embed(pool, as_matrix(table), ids.data_as<int32_t>(), as_matrix(y)); },
      [=](cuda::Device& gpu) {
        const auto verdict = gpu.allocate(cuda::kVerdictBytes);
        cuda::clear_verdict(gpu, verdict->data());
        gpu.kernels().decoder.embed(gpu.stream(), as_matrix(table), ids.data_as<int32_t>(), verdict->data(),
                                    as_matrix(y));
        check_ids_of(gpu, *verdict, ids, table.shape[0]);
      });
  return TensorHandle::make(info.Env(), y);
}

/// add(a, b, gates | null)
Napi::Value add(const Napi::CallbackInfo& info) {
  const Tensor a = matrix(info[0], "a");
  const Tensor b = matrix(info[1], "b");
  check_same(a, b);
  std::optional<Tensor> gates;
  std::vector<Tensor> inputs{a, b};
  if (!info[2].IsNull()) {
    gates = matrix(info[2], "gates", 1);
    if (gates->shape[0] != a.shape[0]) fail(ErrorCode::shape, "gates: ", to_string(gates->shape), " came");
    inputs.push_back(*gates);
  }
  const Tensor y = like(a);
  const ConstMatrix logits = gates ? as_matrix(*gates) : Matrix{};
  const bool gated = gates.has_value();
  enqueue(
      std::move(inputs), y,
      [=](ThreadPool& pool) {
        ops::add(pool, as_matrix(a), as_matrix(b), gated ? &logits : nullptr, as_matrix(y));
      },
      [=](cuda::Device& gpu) {
        gpu.kernels().decoder.add(gpu.stream(), as_matrix(a), as_matrix(b), gated ? &logits : nullptr,
                                  as_matrix(y));
      });
  return TensorHandle::make(info.Env(), y);
}

/// swiglu(gate, up)
Napi::Value swiglu(const Napi::CallbackInfo& info) {
  const Tensor gate = matrix(info[0], "gate");
  const Tensor up = matrix(info[1], "up");
  check_same(gate, up);
  const Tensor y = like(gate);
  enqueue(
      {gate, up}, y,
      [=](ThreadPool& pool) { ops::swiglu(pool, as_matrix(gate), as_matrix(up), as_matrix(y)); },
      [=](cuda::Device& gpu) {
        gpu.kernels().decoder.swiglu(gpu.stream(), as_matrix(gate), as_matrix(up), as_matrix(y));
      });
  return TensorHandle::make(info.Env(), y);
}

/// scoreTokens(logits, baseline | null, targets): float32 [T, 5], a TokenScore a row
Napi::Value score_tokens(const Napi::CallbackInfo& info) {
  constexpr int64_t kFields = sizeof(ops::TokenScore) / sizeof(float);
  const Tensor logits = matrix(info[0], "logits");
  std::vector<Tensor> inputs{logits};
  std::optional<Tensor> baseline;
  if (!info[1].IsNull()) {
    baseline = matrix(info[1], "baseline");
    check_same(logits, *baseline);
    inputs.push_back(*baseline);
  }
  const Tensor targets = vector(info[2], "targets", DType::int32, logits.shape[0]);
  inputs.push_back(targets);
  if (logits.dtype != DType::float32 || (baseline && baseline->dtype != DType::float32))
    fail(ErrorCode::dtype, "logits: float32 expected");
  const Tensor scores = empty(*logits.device, DType::float32, {logits.shape[0], kFields});
  const float* const other = baseline ? baseline->data_as<float>() : nullptr;
  enqueue(
      std::move(inputs), scores,
      [=](ThreadPool& pool) {
        ops::score_tokens(pool, logits.data_as<float>(), other, logits.shape[0], logits.shape[1],
                          targets.data_as<int32_t>(), scores.data_as<ops::TokenScore>());
      },
      [=](cuda::Device& gpu) {
        const auto verdict = gpu.allocate(cuda::kVerdictBytes);
        cuda::clear_verdict(gpu, verdict->data());
        gpu.kernels().decoder.score_tokens(gpu.stream(), logits.data_as<float>(), other, logits.shape[0],
                                           logits.shape[1], targets.data_as<int32_t>(), verdict->data(),
                                           scores.data_as<ops::TokenScore>());
        check_ids_of(gpu, *verdict, targets, logits.shape[1]);
      });
  return TensorHandle::make(info.Env(), scores);
}

}  // namespace

void define_decoder(Napi::Env env, Napi::Object exports) {
  exports.Set("decoderRmsNorm", Napi::Function::New<guarded<rms_norm>>(env));
  exports.Set("decoderRotate", Napi::Function::New<guarded<rotate>>(env));
  exports.Set("decoderAttend", Napi::Function::New<guarded<attend>>(env));
  exports.Set("decoderEmbed", Napi::Function::New<guarded<embed>>(env));
  exports.Set("decoderAdd", Napi::Function::New<guarded<add>>(env));
  exports.Set("decoderSwiglu", Napi::Function::New<guarded<swiglu>>(env));
  exports.Set("decoderScoreTokens", Napi::Function::New<guarded<score_tokens>>(env));
}

}  // namespace quantaria::addon
