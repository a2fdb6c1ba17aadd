#include "addon/quantize.h"

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/scheme.h"
#include "addon/stored_form.h"
#include "addon/stored_parts.h"
#include "addon/tensor_handle.h"
#include "addon/weight.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "cuda/refusal.h"
#include "ops/bitpack/bitpack.h"
#include "ops/copy/copy_tensor.h"
#include "ops/hadamard/hadamard.h"
#include "ops/quantize/quantize.h"
#include "ops/quantize/weight.h"

namespace quantaria::addon {
namespace {

/// The tensors of a stored form, by name, as they are made.
class Stored {
 public:
  Stored(Napi::Env env, Device& device) : device_(device), object_(Napi::Object::New(env)) {}

  Tensor add(const char* name, DType dtype, Shape shape) {
    Tensor tensor = empty(device_, dtype, std::move(shape));
    tensors_.push_back(tensor);
    object_.Set(name, TensorHandle::make(object_.Env(), tensor));
    return tensor;
  }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  Napi::Object object() const { return object_; }

 private:
  Device& device_;
  Napi::Object object_;
  std::vector<Tensor> tensors_;
};

/// A quantization, ready to be queued on either kind of device.
struct Quantization {
  ConstMatrix w;
  std::function<void(ops::ErrorSums*)> by_cpu;
  std::function<int64_t(const ops::QuantizeLaunchers&)> workspace;
  std::function<void(const ops::QuantizeLaunchers&, const ops::QuantizeCall&)> by_cuda;
  float bound = std::numeric_limits<float>::infinity();  // of magnitudes
};

using Launchers = ops::QuantizeLaunchers;
using Call = ops::QuantizeCall;

Quantization int_body(const Tensor& w, Napi::Value scheme, Stored& stored) {
  const ops::IntScheme s = to_int_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, s.granularity == ops::Granularity::row);
  const IntTensors to = add_int(stored, w, s);
  return {m,
          [=](ops::ErrorSums* sums) { ops::quantize_int(cpu::device().pool(), m, s, to.pointers(), sums); },
          [=](const Launchers& l) { return l.int_workspace(s, m.rows, m.cols); },
          [=](const Launchers& l, const Call& call) { l.integers(call, s, to.pointers()); }};
}

Quantization codebook_body(const Tensor& w, Napi::Value scheme, Stored& stored) {
  const ops::CodebookScheme s = to_codebook_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, false);
  const CodebookTensors to = add_codebook(stored, m, s);
  return {
      m,
      [=](ops::ErrorSums* sums) { ops::quantize_codebook(cpu::device().pool(), m, s, to.pointers(), sums); },
      [=](const Launchers& l) { return l.codebook_workspace(s, m.rows, m.cols); },
      [=](const Launchers& l, const Call& call) { l.codebook(call, s, to.pointers()); }};
}

Quantization fp8_body(const Tensor& w, Napi::Value scheme, Stored& stored) {
  const ops::Fp8Scheme s = to_fp8_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, s.per_row);
  const Fp8Tensors to = add_fp8(stored, w, s);
  return {m,
          [=](ops::ErrorSums* sums) {
            const ops::Fp8Stored stored_to = to.pointers();
            ops::quantize_fp8(cpu::device().pool(), m, s, stored_to.packed, stored_to.scales, sums);
          },
          [=](const Launchers& l) { return l.rows_workspace(m.rows, m.cols); },
          [=](const Launchers& l, const Call& call) {
            const ops::Fp8Stored stored_to = to.pointers();
            l.fp8(call, s, stored_to.packed, stored_to.scales);
          }};
}

Quantization mx_body(const Tensor& w, Napi::Value scheme, Stored& stored) {
  const ops::MxScheme s = to_mx_scheme(scheme);
  const ConstMatrix m = weight_matrix(w, s.pre_scale);
  const MxTensors to = add_mx(stored, w, s);
  return {m,
          [=](ops::ErrorSums* sums) {
            const ops::MxStored stored_to = to.pointers();
            ops::quantize_mx(cpu::device().pool(), m, s, stored_to.packed, stored_to.scales,
                             stored_to.pre_scale, sums);
          },
          [=](const Launchers& l) { return l.rows_workspace(m.rows, m.cols); },
          [=](const Launchers& l, const Call& call) {
            const ops::MxStored stored_to = to.pointers();
            l.mx(call, s, stored_to.packed, stored_to.scales, stored_to.pre_scale);
          }};
}

Quantization llm_int8_body(const Tensor& w, Napi::Value, Stored& stored) {
  const ConstMatrix m = as_matrix(w);
  const Tensor packed = stored.add("packed", DType::uint8, {m.rows, ops::packed_row_bytes(m.cols, 8)});
  const Tensor scales = stored.add("scales", DType::float32, {m.rows});
  return {m,
          [=](ops::ErrorSums* sums) {
            ops::quantize_llm_int8(cpu::device().pool(), m, pointer<uint8_t>(packed), pointer<float>(scales),
                                   sums);
          },
          [=](const Launchers& l) { return l.rows_workspace(m.rows, m.cols); },
          [=](const Launchers& l, const Call& call) {
            l.llm_int8(call, pointer<uint8_t>(packed), pointer<float>(scales));
          },
          ops::kLlmInt8Bound};
}

using MakeBody = Quantization (*)(const Tensor&, Napi::Value, Stored&);

MakeBody quantizer_of(Napi::Value scheme) {
  return choice<MakeBody>(field(scheme, "kind"), "kind",
                          {{"int", int_body},
                           {"nf4", codebook_body},
                           {"fp4", codebook_body},
                           {"e3m0", codebook_body},
                           {"dynamic8", codebook_body},
                           {"fp8", fp8_body},
                           {"mx", mx_body},
                           {"llm.int8", llm_int8_body}});
}

/// On the device's queue, which waits for its kernels, so that a weight that is refused fails here.
void quantize_by_cuda(cuda::Device& device, const Quantization& q, float* relative_error) {
  ops::check_weight(q.w);
  const Launchers& launchers = device.kernels().quantize;
  const std::shared_ptr<Storage> workspace = device.allocate(q.workspace(launchers));
  cuda::clear_verdict(device, workspace->data());
  q.by_cuda(launchers, {device.stream(), q.w, relative_error, workspace->data()});
  const std::optional<int64_t> at = cuda::refused(device, workspace->data());
  if (!at) return;
  const int64_t row = *at / q.w.cols;
  const int64_t col = *at % q.w.cols;
  ops::refuse_weight(static_cast<float>(cuda::element_at(device, q.w, row, col)), row, col, q.bound);
}

/// quantize(weight, scheme): the stored form by name, and `relativeError` float32 [1]: the Frobenius norm of
/// weight - dequantized over that of the weight.
Napi::Value quantize(const Napi::CallbackInfo& info) {
  const Tensor w = TensorHandle::get_anywhere(info[0], "weight");
  if (w.shape.size() != 2) fail(ErrorCode::shape, "weight: ", to_string(w.shape), ", [out, in] expected");
  Stored stored(info.Env(), *w.device);
  const Quantization body = quantizer_of(info[1])(w, info[1], stored);
  const Tensor relative_error = stored.add("relativeError", DType::float32, {1});
  w.device->enqueue({w}, stored.tensors(), [=] {
    if (w.device != &cpu::device())
      return quantize_by_cuda(cuda::of(w.device), body, relative_error.data_as<float>());
    ops::ErrorSums sums;
    body.by_cpu(&sums);
    const double relative = sums.error > 0 ? std::sqrt(sums.error / sums.weight) : 0;
    *relative_error.data_as<float>() = static_cast<float>(relative);
  });
  return stored.object();
}

/// A rotation and what is quantized in one launch with it, on a CUDA device's queue.
using RotatedBody = std::function<void(const ops::HadamardLaunchers&, const ops::HadamardQuantizeCall&)>;

RotatedBody rotated_body(const Tensor& x, Napi::Value scheme, Stored& stored) {
  if (to_text(field(scheme, "kind"), "kind") == "mx") {
    const ops::MxScheme s = to_mx_scheme(scheme);
    const MxTensors to = add_mx(stored, x, s);
    return [=](const ops::HadamardLaunchers& l, const ops::HadamardQuantizeCall& call) {
      const ops::MxStored stored_to = to.pointers();
      l.quantize_mx(call, s, stored_to.packed, stored_to.scales);
    };
  }
  const ops::IntScheme s = to_int_scheme(scheme);
  const IntTensors to = add_int(stored, x, s);
  return [=](const ops::HadamardLaunchers& l, const ops::HadamardQuantizeCall& call) {
    l.quantize_int(call, s, to.pointers());
  };
}

/// The rotated element that cannot be quantized, for the message, from its row once more.
[[noreturn]] void refuse_rotated(cuda::Device& device, const ops::HadamardQuantizeCall& call, int64_t at) {
  const int64_t row = at / call.n;
  const int64_t bytes = call.n * size_of(call.dtype);
  const ops::HadamardLaunchers& kernels = device.kernels().hadamard;
  const auto rotated = device.allocate(bytes);
  const auto workspace = device.allocate(kernels.workspace(1, call.n));
  kernels.transform(device.stream(), call.dtype, 1, call.n, call.scale, call.x + row * bytes, rotated->data(),
                    workspace->data());
  const ConstMatrix values{rotated->data(), call.dtype, 1, call.n, call.n, 1};
  ops::refuse_weight(static_cast<float>(cuda::element_at(device, values, 0, at % call.n)), row, at % call.n,
                     std::numeric_limits<float>::infinity());
}

/// hadamardQuantize(x, scale, scheme): the stored form of the rotated rows by name; on CUDA devices.
Napi::Value hadamard_quantize(const Napi::CallbackInfo& info) {
  const Tensor x = TensorHandle::get_anywhere(info[0], "x");
  const auto scale = static_cast<float>(to_number(info[1], "scale"));
  if (x.shape.size() != 2 || x.shape[1] == 0)
    fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [rows, n] expected");
  ops::check_hadamard_size(x.shape[1]);
  if (x.device == &cpu::device())
    fail(ErrorCode::device, "x is on ", x.device->id(), ", a CUDA device expected");
  Stored stored(info.Env(), *x.device);
  const RotatedBody body = rotated_body(x, info[2], stored);
  x.device->enqueue({x}, stored.tensors(), [=] {
    cuda::Device& device = cuda::of(x.device);
    ops::check_weight(as_matrix(x), "x");
    const Tensor rows = x.contiguous() ? x : empty(device, x.dtype, x.shape);
    if (!x.contiguous()) copy_on_device(x, rows);
    const auto verdict = device.allocate(cuda::kVerdictBytes);
    cuda::clear_verdict(device, verdict->data());
    const ops::HadamardQuantizeCall call{device.stream(), x.dtype,     x.shape[0],     x.shape[1],
                                         scale,           rows.data(), verdict->data()};
    body(device.kernels().hadamard, call);
    if (const std::optional<int64_t> at = cuda::refused(device, verdict->data()))
      refuse_rotated(device, call, *at);
  });
  return stored.object();
}

using DequantizeBody = std::function<void(std::byte*)>;

DequantizeBody int_values(Napi::Value scheme, Parts& parts, int64_t out, int64_t in, DType dtype) {
  const ops::IntScheme s = to_int_scheme(scheme);
  const ops::ConstantsShape constants = ops::constants_shape(s, out, in);
  const int64_t count = constants.rows * constants.cols;
  const Tensor packed = parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, s.bits));
  const Tensor scales = parts.take("scales", DType::float32, count);
  const Tensor zeros = s.symmetric ? Tensor{} : parts.take("zeros", DType::int32, count);
  const Tensor index = parts.has("groupIndex") ? parts.take("groupIndex", DType::int32, in) : Tensor{};
  return [=](std::byte* values) {
    ops::dequantize_int(
        cpu::device().pool(), s,
        {pointer<uint8_t>(packed), pointer<float>(scales), pointer<int32_t>(zeros), pointer<int32_t>(index)},
        out, in, dtype, values);
  };
}

DequantizeBody codebook_values(Napi::Value scheme, Parts& parts, int64_t out, int64_t in, DType dtype) {
  const ops::CodebookScheme s = to_codebook_scheme(scheme);
  const int64_t blocks = ops::block_count(s, out, in);
  const int bits = s.book == ops::Codebook::dynamic8 ? 8 : 4;
  const Tensor packed = parts.take("packed", DType::uint8, ops::packed_row_bytes(out * in, bits));
  Tensor absmax, codes, scales, offset;
  if (s.double_quant) {
    codes = parts.take("absmaxCodes", DType::uint8, blocks);
    scales = parts.take("absmaxScales", DType::float32, (blocks + ops::kNestedBlock - 1) / ops::kNestedBlock);
    offset = parts.take("absmaxOffset", DType::float32, 1);
  } else {
    absmax = parts.take("absmax", DType::float32, blocks);
  }
  return [=](std::byte* values) {
    ops::dequantize_codebook(cpu::device().pool(), s,
                             {pointer<uint8_t>(packed), pointer<float>(absmax), pointer<uint8_t>(codes),
                              pointer<float>(scales), pointer<float>(offset)},
                             out, in, dtype, values);
  };
}

DequantizeBody fp8_values(Napi::Value scheme, Parts& parts, int64_t out, int64_t in, DType dtype) {
  const ops::Fp8Scheme s = to_fp8_scheme(scheme);
  const Tensor packed = parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, 8));
  const Tensor scales = parts.take("scales", DType::float32, s.per_row ? out : 1);
  return [=](std::byte* values) {
    ops::dequantize_fp8(cpu::device().pool(), s, pointer<uint8_t>(packed), pointer<float>(scales), out, in,
                        dtype, values);
  };
}

DequantizeBody mx_values(Napi::Value scheme, Parts& parts, int64_t out, int64_t in, DType dtype) {
  const ops::MxScheme s = to_mx_scheme(scheme);
  const int64_t blocks = (in + ops::kMxBlock - 1) / ops::kMxBlock;
  const Tensor packed =
      parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, ops::mx_element_bits(s.element)));
  const Tensor scales = parts.take("scales", DType::uint8, out * blocks);
  const Tensor pre_scale = s.pre_scale ? parts.take("preScale", DType::float32, out) : Tensor{};
  return [=](std::byte* values) {
    ops::dequantize_mx(cpu::device().pool(), s, pointer<uint8_t>(packed), pointer<uint8_t>(scales),
                       pointer<float>(pre_scale), out, in, dtype, values);
  };
}

DequantizeBody llm_int8_values(Napi::Value, Parts& parts, int64_t out, int64_t in, DType dtype) {
  const Tensor packed = parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, 8));
  const Tensor scales = parts.take("scales", DType::float32, out);
  return [=](std::byte* values) {
    ops::dequantize_llm_int8(cpu::device().pool(), pointer<uint8_t>(packed), pointer<float>(scales), out, in,
                             dtype, values);
  };
}

using MakeValues = DequantizeBody (*)(Napi::Value, Parts&, int64_t, int64_t, DType);

MakeValues dequantizer_of(Napi::Value scheme) {
  return choice<MakeValues>(field(scheme, "kind"), "kind",
                            {{"int", int_values},
                             {"nf4", codebook_values},
                             {"fp4", codebook_values},
                             {"e3m0", codebook_values},
                             {"dynamic8", codebook_values},
                             {"fp8", fp8_values},
                             {"mx", mx_values},
                             {"llm.int8", llm_int8_values}});
}

Napi::Value dequantize_by_cuda(const Napi::CallbackInfo& info, cuda::Device& device, DType dtype) {
  const StoredWeight weight = to_weight(info[0], info[1], info[2]);
  Tensor values = empty(device, dtype, {weight.out, weight.in});
  device.enqueue(weight.tensors, {values}, [=, &device] {
    if (values.elements() > 0)
      device.kernels().dequantize(device.stream(), weight.coded(), dtype, values.data());
  });
  return TensorHandle::make(info.Env(), std::move(values));
}

/// dequantize(scheme, stored, shape, dtype): dtype [out, in]
Napi::Value dequantize(const Napi::CallbackInfo& info) {
  const Shape shape = to_shape(info[2], "shape");
  if (shape.size() != 2) fail(ErrorCode::shape, "shape: ", to_string(shape), ", [out, in] expected");
  const DType dtype = to_dtype(info[3], "dtype");
  if (!is_float(dtype)) fail(ErrorCode::dtype, "dtype: ", name_of(dtype), ", a float dtype expected");
  Parts parts(info[1]);
  const Tensor& packed = TensorHandle::get_anywhere(field(info[1], "packed"), "packed");
  if (packed.device != &cpu::device()) return dequantize_by_cuda(info, cuda::of(packed.device), dtype);
  const DequantizeBody body = dequantizer_of(info[0])(info[0], parts, shape[0], shape[1], dtype);
  Tensor values = empty(cpu::device(), dtype, shape);
  cpu::device().enqueue(parts.taken(), {values}, [=] {
    if (values.elements() > 0) body(values.data());
  });
  return TensorHandle::make(info.Env(), std::move(values));
}

/// nestedAbsmax(codes, scales, offset): float32 [blocks]
Napi::Value nested_absmax(const Napi::CallbackInfo& info) {
  const Tensor codes = TensorHandle::get_anywhere(info[0], "absmaxCodes");
  const int64_t blocks = codes.elements();
  const Tensor scales = TensorHandle::get_with(codes, info[1], "absmaxScales");
  const Tensor offset = TensorHandle::get_with(codes, info[2], "absmaxOffset");
  if (codes.dtype != DType::uint8 || scales.dtype != DType::float32 || offset.dtype != DType::float32)
    fail(ErrorCode::dtype, "absmaxCodes uint8, absmaxScales and absmaxOffset float32 expected");
  if (scales.elements() != (blocks + ops::kNestedBlock - 1) / ops::kNestedBlock || offset.elements() != 1 ||
      !codes.contiguous() || !scales.contiguous())
    fail(ErrorCode::shape, "absmaxScales: one for each ", ops::kNestedBlock, " of ", blocks,
         " blocks expected");
  Tensor absmax = empty(*codes.device, DType::float32, {blocks});
  codes.device->enqueue({codes, scales, offset}, {absmax}, [=] {
    if (codes.device != &cpu::device()) {
      cuda::Device& device = cuda::of(codes.device);
      return device.kernels().quantize.nested_absmax(device.stream(), codes.data_as<uint8_t>(),
                                                     scales.data_as<float>(), offset.data_as<float>(), blocks,
                                                     absmax.data_as<float>());
    }
    ops::decode_nested_absmax(codes.data_as<uint8_t>(), scales.data_as<float>(), *offset.data_as<float>(),
                              blocks, absmax.data_as<float>());
  });
  return TensorHandle::make(info.Env(), std::move(absmax));
}

}  // namespace

void define_quantize(Napi::Env env, Napi::Object exports) {
  exports.Set("quantize", Napi::Function::New<guarded<quantize>>(env));
  exports.Set("hadamardQuantize", Napi::Function::New<guarded<hadamard_quantize>>(env));
  exports.Set("dequantize", Napi::Function::New<guarded<dequantize>>(env));
  exports.Set("nestedAbsmax", Napi::Function::New<guarded<nested_absmax>>(env));
}

}  // namespace quantaria::addon
