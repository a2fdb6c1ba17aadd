#include "simt/emulator/rounding.h"

#include <bit>
#include <cmath>
#include <limits>

#include "numerics/bfloat16.h"
#include "numerics/half.h"

namespace quantaria::simt::emulator {
namespace {

/// a + b in float64, rounded to odd: a later rounding to far fewer bits sees on which side of a tie the exact
/// sum lies.
double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double part = sum - a;
  const double error = (a - (sum - part)) + (b - part);  // exact (Knuth)
  if (error == 0 || (std::bit_cast<uint64_t>(sum) & 1) != 0) return sum;
  const double infinity = std::numeric_limits<double>::infinity();
  return std::nextafter(sum, error > 0 ? infinity : -infinity);
}

float to_float_odd(double x) {
  const auto rounded = static_cast<float>(x);
  if (double{rounded} == x || !std::isfinite(x)) return rounded;
  if ((std::bit_cast<uint32_t>(rounded) & 1) != 0) return rounded;
  const float infinity = std::numeric_limits<float>::infinity();
  return std::nextafter(rounded, x > double{rounded} ? infinity : -infinity);
}

/// The product of two 16-bit floats is exact in float64.
float fma_to_odd(float a, float b, float c) { return to_float_odd(add_to_odd(double{a} * double{b}, c)); }

}  // namespace

uint16_t fma_half(uint16_t a, uint16_t b, uint16_t c) {
  return numerics::half_from_float(
      fma_to_odd(numerics::float_from_half(a), numerics::float_from_half(b), numerics::float_from_half(c)));
}

uint16_t fma_bfloat16(uint16_t a, uint16_t b, uint16_t c) {
  return numerics::bfloat16_from_float(fma_to_odd(
      numerics::float_from_bfloat16(a), numerics::float_from_bfloat16(b), numerics::float_from_bfloat16(c)));
}

}  // namespace quantaria::simt::emulator
