#include "cpu/lanes.h"
#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// Magnitudes are compared as integers: the order of floats without their sign is that of their bits, and a
// NaN or infinity shows as the largest of all.
Ints largest_magnitudes(const float* x, int64_t n) {
  Ints largest = splat(int32_t{0});
  for_each_lanes(x, n, [&](int64_t, const Floats& v) { largest = larger(largest, magnitude_bits(v)); });
  return largest;
}

uint32_t absmax(const float* row, int64_t n, int64_t group, float* to) {
  int32_t largest = 0;
  for (int64_t first = 0; first < n; first += group) {
    const int64_t size = n - first < group ? n - first : group;
    const int32_t magnitude = largest_of(largest_magnitudes(row + first, size));
    *to++ = numerics::float_of(static_cast<uint32_t>(magnitude));
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint32_t>(largest);
}

// The range holds 0 in any case, so the zeros that pad the last lanes do no harm.
uint32_t range(const float* row, int64_t n, int64_t group, float* low, float* high) {
  Ints largest = splat(int32_t{0});
  for (int64_t first = 0; first < n; first += group) {
    const int64_t size = n - first < group ? n - first : group;
    Floats least = splat(0.0f);
    Floats most = splat(0.0f);
    for_each_lanes(row + first, size, [&](int64_t, const Floats& v) {
      least = smaller(v, least);
      most = larger(v, most);
      largest = larger(largest, magnitude_bits(v));
    });
    *low++ = smallest_of(least);
    *high++ = largest_of(most);
  }
  return static_cast<uint32_t>(largest_of(largest));
}

}  // namespace

extern const RangeKernels range_kernels;
const RangeKernels range_kernels = {absmax, range};

}  // namespace quantaria::ops::QUANTARIA_ISA
