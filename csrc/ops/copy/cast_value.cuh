#pragma once

#include "core/dtype.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/half.h"
#include "simt/simt.h"

/// One element of any dtype to another, as copy_cast documents (ops/copy/copy.h), by the functions that the
/// CPU uses: the same bits.
namespace quantaria::ops {

/// Floats go through float32, integers through int64.
struct CastValue {
  bool is_float;
  float real;
  int64_t integer;
};

template <class T>
__device__ T element(const std::byte* data, int64_t i) {
  return simt::load(reinterpret_cast<const T*>(data) + i);
}

__device__ inline CastValue load_value(DType dtype, const std::byte* data, int64_t i) {
  switch (dtype) {
    case DType::float32:
      return {true, element<float>(data, i), 0};
    case DType::float16:
      return {true, numerics::float_from_half(element<uint16_t>(data, i)), 0};
    case DType::bfloat16:
      return {true, numerics::float_from_bfloat16(element<uint16_t>(data, i)), 0};
    case DType::float8_e4m3:
      return {true, numerics::float_from_e4m3(element<uint8_t>(data, i)), 0};
    case DType::float8_e5m2:
      return {true, numerics::float_from_e5m2(element<uint8_t>(data, i)), 0};
    case DType::int8:
      return {false, 0, element<int8_t>(data, i)};
    case DType::uint8:
      return {false, 0, element<uint8_t>(data, i)};
    case DType::int16:
      return {false, 0, element<int16_t>(data, i)};
    case DType::int32:
      return {false, 0, element<int32_t>(data, i)};
    case DType::int64:
      return {false, 0, element<int64_t>(data, i)};
    case DType::boolean:
      break;
  }
  return {false, 0, element<uint8_t>(data, i) != 0};
}

/// A call: eight bits are rarely asked for, and inlined for each of a thread's sums they would be most of a
/// product's code.
[[gnu::noinline]] __device__ inline float float_from_float8(DType dtype, uint8_t code) {
  return dtype == DType::float8_e4m3 ? numerics::float_from_e4m3(code) : numerics::float_from_e5m2(code);
}

[[gnu::noinline]] __device__ inline uint8_t float8_from_float(DType dtype, float value) {
  return dtype == DType::float8_e4m3 ? numerics::e4m3_from_float(value) : numerics::e5m2_from_float(value);
}

/// The same for what is known to be a float.
__device__ inline float load_real(DType dtype, const std::byte* data, int64_t i) {
  if (dtype == DType::float32) return element<float>(data, i);
  if (dtype == DType::float16) return simt::to_float(element<simt::Half>(data, i));
  if (dtype == DType::bfloat16) return simt::to_float(element<simt::Bfloat16>(data, i));
  return float_from_float8(dtype, element<uint8_t>(data, i));
}

/// The same for what is known to be one of the floats that products take.
__device__ inline float load_float(DType dtype, const std::byte* data, int64_t i) {
  if (dtype == DType::float32) return element<float>(data, i);
  const auto bits = element<uint16_t>(data, i);
  return dtype == DType::float16 ? numerics::float_from_half(bits) : numerics::float_from_bfloat16(bits);
}

/// To the nearest even integer, clamped to Bits bits; NaN gives 0.
template <int Bits, bool Signed>
__device__ int64_t integer_of(const CastValue& value) {
  constexpr int64_t kHigh = static_cast<int64_t>(~uint64_t{0} >> (64 - Bits + (Signed ? 1 : 0)));
  constexpr int64_t kLow = Signed ? -kHigh - 1 : 0;
  if (!value.is_float) return value.integer < kLow ? kLow : value.integer > kHigh ? kHigh : value.integer;
  if (numerics::is_nan(value.real)) return 0;
  constexpr float kPastHigh = static_cast<float>(kHigh / 2 + 1) * 2.0f;
  const float rounded = nearbyintf(value.real);
  if (rounded >= kPastHigh) return kHigh;
  if (rounded < static_cast<float>(kLow)) return kLow;
  return static_cast<int64_t>(rounded);
}

template <class T>
__device__ void set_element(std::byte* data, int64_t i, T value) {
  simt::store(reinterpret_cast<T*>(data) + i, value);
}

__device__ inline void store_value(DType dtype, std::byte* data, int64_t i, const CastValue& value) {
  const float real = value.is_float ? value.real : static_cast<float>(value.integer);
  switch (dtype) {
    case DType::float32:
      return set_element(data, i, real);
    case DType::float16:
      return set_element(data, i, numerics::half_from_float(real));
    case DType::bfloat16:
      return set_element(data, i, numerics::bfloat16_from_float(real));
    case DType::float8_e4m3:
      return set_element(data, i, numerics::e4m3_from_float(real));
    case DType::float8_e5m2:
      return set_element(data, i, numerics::e5m2_from_float(real));
    case DType::int8:
      return set_element(data, i, static_cast<int8_t>(integer_of<8, true>(value)));
    case DType::uint8:
      return set_element(data, i, static_cast<uint8_t>(integer_of<8, false>(value)));
    case DType::int16:
      return set_element(data, i, static_cast<int16_t>(integer_of<16, true>(value)));
    case DType::int32:
      return set_element(data, i, static_cast<int32_t>(integer_of<32, true>(value)));
    case DType::int64:
      return set_element(data, i, integer_of<64, true>(value));
    case DType::boolean:
      return set_element(data, i,
                         static_cast<uint8_t>(value.is_float ? value.real != 0 : value.integer != 0));
  }
}

/// The same into what is known to be a float, by the device's own instructions where it has them: which NaN
/// is written is theirs.
__device__ inline void store_real(DType dtype, std::byte* data, int64_t i, float value) {
  if (dtype == DType::float32) return set_element(data, i, value);
  if (dtype == DType::float16) return set_element(data, i, simt::from_float<simt::Half>(value));
  if (dtype == DType::bfloat16) return set_element(data, i, simt::from_float<simt::Bfloat16>(value));
  set_element(data, i, float8_from_float(dtype, value));
}

}  // namespace quantaria::ops
