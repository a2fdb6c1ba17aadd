#include "cuda/refusal.h"

#include <cstring>

#include "core/error.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"

namespace quantaria::cuda {
namespace {

template <class T>
T value_of(const std::byte (&bytes)[8]) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

}  // namespace

void clear_verdict(Device& device, std::byte* verdict) { device.zero(verdict, kVerdictBytes); }

std::optional<int64_t> refused(Device& device, const std::byte* verdict) {
  if (device.capturing()) return std::nullopt;  // nothing has run, and nobody asks when it does
  uint64_t word = 0;
  device.copy_out(verdict, reinterpret_cast<std::byte*>(&word), kVerdictBytes);
  if (word == 0) return std::nullopt;
  return static_cast<int64_t>(~word);
}

double element_at(Device& device, const ConstMatrix& m, int64_t row, int64_t col) {
  std::byte bytes[8] = {};
  const int64_t size = size_of(m.dtype);
  device.copy_out(m.data + (row * m.row_stride + col * m.col_stride) * size, bytes, size);
  switch (m.dtype) {
    case DType::float32:
      return double{value_of<float>(bytes)};
    case DType::float16:
      return double{numerics::float_from_half(value_of<uint16_t>(bytes))};
    case DType::bfloat16:
      return double{numerics::float_from_bfloat16(value_of<uint16_t>(bytes))};
    case DType::int8:
      return value_of<int8_t>(bytes);
    case DType::uint8:
      return value_of<uint8_t>(bytes);
    case DType::int16:
      return value_of<int16_t>(bytes);
    case DType::int32:
      return value_of<int32_t>(bytes);
    case DType::int64:
      return static_cast<double>(value_of<int64_t>(bytes));
    default:
      fail(ErrorCode::dtype, name_of(m.dtype), " given, float32, float16, bfloat16 or an integer expected");
  }
}

}  // namespace quantaria::cuda
