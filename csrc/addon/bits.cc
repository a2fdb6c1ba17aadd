#include "addon/bits.h"

#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "cuda/refusal.h"
#include "ops/bitpack/bitpack.h"

namespace quantaria::addon {
namespace {

const Tensor& contiguous_bytes(Napi::Value value, const char* name) {
  const Tensor& tensor = TensorHandle::get_anywhere(value, name);
  if (tensor.dtype != DType::uint8)
    fail(ErrorCode::dtype, name, ": ", name_of(tensor.dtype), ", uint8 expected");
  if (!tensor.contiguous()) fail(ErrorCode::shape, name, ": a contiguous tensor expected");
  return tensor;
}

void require_matrix(const Tensor& tensor, const char* name) {
  if (tensor.shape.size() != 2)
    fail(ErrorCode::shape, name, ": ", to_string(tensor.shape), ", a matrix expected");
}

bool on_cpu(const Tensor& tensor) { return tensor.device == &cpu::device(); }

/// On the device's queue, which waits for its kernels, so that codes that are refused fail here:
/// launch(launchers, stream, verdict), then refuse(code, row, column) of the first one.
template <class Launch, class Refuse>
void checked_by_cuda(const Tensor& codes, const Launch& launch, const Refuse& refuse) {
  cuda::Device& device = cuda::of(codes.device);
  const std::shared_ptr<Storage> verdict = device.allocate(cuda::kVerdictBytes);
  cuda::clear_verdict(device, verdict->data());
  launch(device.kernels().bits, device.stream(), verdict->data());
  const std::optional<int64_t> at = cuda::refused(device, verdict->data());
  if (!at) return;
  const ConstMatrix m = as_matrix(codes);
  const int64_t row = *at / m.cols;
  const int64_t col = *at % m.cols;
  refuse(static_cast<int64_t>(cuda::element_at(device, m, row, col)), row, col);
}

std::optional<ops::NibbleOrder> to_order(Napi::Value value) {
  if (value.IsUndefined() || value.IsNull()) return std::nullopt;
  const Shape given = to_shape(value, "order");
  ops::NibbleOrder order{};
  if (given.size() != order.size()) fail(ErrorCode::argument, "order: eight columns expected");
  unsigned seen = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int>(given[i]);
    if (given[i] < 8) seen |= 1u << given[i];
  }
  if (seen != 0xFF) fail(ErrorCode::argument, "order: a permutation of 0 to 7 expected");
  return order;
}

/// packBits(codes, bits, offset, order): uint8 [rows, bytes of a bit row]
Napi::Value pack_bits(const Napi::CallbackInfo& info) {
  const Tensor codes = TensorHandle::get_anywhere(info[0], "codes");
  require_matrix(codes, "codes");
  const int bits = static_cast<int>(to_integer(info[1], "bits", 2, 16));
  const auto offset = static_cast<int32_t>(to_integer(info[2], "offset", 0, 1 << 16));
  const auto order = to_order(info[3]);
  Tensor packed =
      empty(*codes.device, DType::uint8, {codes.shape[0], ops::packed_row_bytes(codes.shape[1], bits)});
  codes.device->enqueue({codes}, {packed}, [=] {
    if (!on_cpu(codes))
      return checked_by_cuda(
          codes,
          [&](const ops::BitLaunchers& kernels, void* stream, std::byte* verdict) {
            kernels.pack(stream, as_matrix(codes), bits, offset, packed.data_as<uint8_t>(), order, verdict);
          },
          [&](int64_t code, int64_t row, int64_t col) { ops::refuse_packed(code, row, col, bits, offset); });
    ops::pack_bits(cpu::device().pool(), as_matrix(codes), bits, offset, packed.data_as<uint8_t>(), order);
  });
  return TensorHandle::make(info.Env(), std::move(packed));
}

/// unpackBits(packed, columns, bits, offset, dtype, order): dtype [rows, columns]
Napi::Value unpack_bits(const Napi::CallbackInfo& info) {
  const Tensor packed = contiguous_bytes(info[0], "packed");
  require_matrix(packed, "packed");
  const int64_t columns = to_integer(info[1], "columns");
  const int bits = static_cast<int>(to_integer(info[2], "bits", 2, 16));
  const auto offset = static_cast<int32_t>(to_integer(info[3], "offset", 0, 1 << 16));
  const auto order = to_order(info[5]);
  if (columns > kMaxSafeInteger / 32 || (columns * bits + 7) / 8 > packed.shape[1])
    fail(ErrorCode::shape, "packed: ", to_string(packed.shape), " does not hold ", columns, " codes of ",
         bits, " bits a row");
  Tensor codes = empty(*packed.device, to_dtype(info[4], "dtype"), {packed.shape[0], columns});
  packed.device->enqueue({packed}, {codes}, [=] {
    if (!on_cpu(packed)) {
      cuda::Device& device = cuda::of(packed.device);
      return device.kernels().bits.unpack(device.stream(), packed.data_as<uint8_t>(), packed.shape[1], bits,
                                          offset, as_matrix(codes), order);
    }
    ops::unpack_bits(cpu::device().pool(), packed.data_as<uint8_t>(), packed.shape[1], bits, offset,
                     as_matrix(codes), order);
  });
  return TensorHandle::make(info.Env(), std::move(codes));
}

/// swapNibbles(bytes): uint8 of the same shape
Napi::Value swap_nibbles(const Napi::CallbackInfo& info) {
  const Tensor in = contiguous_bytes(info[0], "bytes");
  Tensor out = empty(*in.device, DType::uint8, in.shape);
  in.device->enqueue({in}, {out}, [=] {
    if (!on_cpu(in)) {
      cuda::Device& device = cuda::of(in.device);
      return device.kernels().bits.swap_nibbles(device.stream(), in.data_as<uint8_t>(), in.bytes(),
                                                out.data_as<uint8_t>());
    }
    ops::swap_nibbles(cpu::device().pool(), in.data_as<uint8_t>(), in.bytes(), out.data_as<uint8_t>());
  });
  return TensorHandle::make(info.Env(), std::move(out));
}

int planar_bits(Napi::Value value) {
  const auto bits = static_cast<int>(to_integer(value, "bits", 2, 4));
  if (bits == 3) fail(ErrorCode::argument, "bits: 3, 2 or 4 expected");
  return bits;
}

/// packPlanar(codes, bits): uint8 [ceil(rows / (8 / bits)), columns]
Napi::Value pack_planar(const Napi::CallbackInfo& info) {
  const Tensor codes = contiguous_bytes(info[0], "codes");
  require_matrix(codes, "codes");
  const int bits = planar_bits(info[1]);
  const int64_t planes = 8 / bits;
  const Shape shape{(codes.shape[0] + planes - 1) / planes, codes.shape[1]};
  Tensor packed = empty(*codes.device, DType::uint8, shape);
  codes.device->enqueue({codes}, {packed}, [=] {
    if (!on_cpu(codes))
      return checked_by_cuda(
          codes,
          [&](const ops::BitLaunchers& kernels, void* stream, std::byte* verdict) {
            kernels.pack_planar(stream, codes.data_as<uint8_t>(), codes.shape[0], codes.shape[1], bits,
                                packed.data_as<uint8_t>(), verdict);
          },
          [&](int64_t code, int64_t row, int64_t col) { ops::refuse_planar(code, row, col, bits); });
    ops::pack_planar(cpu::device().pool(), codes.data_as<uint8_t>(), codes.shape[0], codes.shape[1], bits,
                     packed.data_as<uint8_t>());
  });
  return TensorHandle::make(info.Env(), std::move(packed));
}

/// unpackPlanar(packed, rows, bits): uint8 [rows, columns]
Napi::Value unpack_planar(const Napi::CallbackInfo& info) {
  const Tensor packed = contiguous_bytes(info[0], "packed");
  require_matrix(packed, "packed");
  const int64_t rows = to_integer(info[1], "rows");
  const int bits = planar_bits(info[2]);
  const int64_t planes = 8 / bits;
  if (rows / planes + (rows % planes != 0) != packed.shape[0])
    fail(ErrorCode::shape, "packed: ", to_string(packed.shape), " does not hold ", rows, " rows of ", bits,
         " bits");
  Tensor codes = empty(*packed.device, DType::uint8, {rows, packed.shape[1]});
  packed.device->enqueue({packed}, {codes}, [=] {
    if (!on_cpu(packed)) {
      cuda::Device& device = cuda::of(packed.device);
      return device.kernels().bits.unpack_planar(device.stream(), packed.data_as<uint8_t>(), rows,
                                                 packed.shape[1], bits, codes.data_as<uint8_t>());
    }
    ops::unpack_planar(cpu::device().pool(), packed.data_as<uint8_t>(), rows, packed.shape[1], bits,
                       codes.data_as<uint8_t>());
  });
  return TensorHandle::make(info.Env(), std::move(codes));
}

/// offsetCodes(codes, delta, dtype, low, high): the codes plus delta as another integer dtype
Napi::Value offset_codes(const Napi::CallbackInfo& info) {
  const Tensor in = TensorHandle::get_anywhere(info[0], "codes");
  const int64_t delta = to_integer(info[1], "delta", -kMaxSafeInteger);
  const DType dtype = to_dtype(info[2], "dtype");
  for (const DType d : {in.dtype, dtype})
    if (is_float(d) || d == DType::boolean)
      fail(ErrorCode::dtype, "codes: ", name_of(d), ", an integer dtype expected");
  std::optional<ops::CodeRange> clamp;
  if (!info[3].IsUndefined())
    clamp = ops::CodeRange{to_integer(info[3], "low", -kMaxSafeInteger),
                           to_integer(info[4], "high", -kMaxSafeInteger)};
  Tensor out = empty(*in.device, dtype, in.shape);
  const Tensor flat_in = in.shape.size() == 2 ? in : reshaped(in, {1, in.elements()});
  const Tensor flat_out = reshaped(out, flat_in.shape);
  in.device->enqueue({in}, {out}, [=] {
    if (!on_cpu(in))
      return checked_by_cuda(
          flat_in,
          [&](const ops::BitLaunchers& kernels, void* stream, std::byte* verdict) {
            kernels.offset_codes(stream, as_matrix(flat_in), delta, clamp, as_matrix(flat_out), verdict);
          },
          [&](int64_t code, int64_t row, int64_t col) { ops::refuse_offset(code, delta, row, col, dtype); });
    ops::offset_codes(cpu::device().pool(), as_matrix(flat_in), delta, clamp, as_matrix(flat_out));
  });
  return TensorHandle::make(info.Env(), std::move(out));
}

}  // namespace

void define_bits(Napi::Env env, Napi::Object exports) {
  exports.Set("packBits", Napi::Function::New<guarded<pack_bits>>(env));
  exports.Set("unpackBits", Napi::Function::New<guarded<unpack_bits>>(env));
  exports.Set("swapNibbles", Napi::Function::New<guarded<swap_nibbles>>(env));
  exports.Set("packPlanar", Napi::Function::New<guarded<pack_planar>>(env));
  exports.Set("unpackPlanar", Napi::Function::New<guarded<unpack_planar>>(env));
  exports.Set("offsetCodes", Napi::Function::New<guarded<offset_codes>>(env));
}

}  // namespace quantaria::addon
