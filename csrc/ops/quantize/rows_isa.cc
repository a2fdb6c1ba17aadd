#include "cpu/lanes.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/half.h"
#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// Plain loops over branch-free conversions: the compiler vectorises them.

void from_half(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = numerics::float_from_half(from[i]);
}
void from_bfloat16(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = numerics::float_from_bfloat16(from[i]);
}
void to_half(const float* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = numerics::half_from_float(from[i]);
}
void to_bfloat16(const float* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = numerics::bfloat16_from_float(from[i]);
}
void to_e4m3(const float* from, int64_t n, uint8_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = numerics::e4m3_from_float(from[i]);
}
void to_e5m2(const float* from, int64_t n, uint8_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = numerics::e5m2_from_float(from[i]);
}

void add_errors(const float* w, const float* q, int64_t n, LaneSums& sums) {
  Floats error = load(sums.error);
  Floats weight = load(sums.weight);
  for_each_lanes(w, n, [&](int64_t first, const Floats& value) {
    const Floats kept = first + kLanes <= n ? load(q + first) : load_some(q + first, n - first);
    const Floats lost = value - kept;
    error = error + lost * lost;
    weight = weight + value * value;
  });
  store(sums.error, error);
  store(sums.weight, weight);
}

}  // namespace

extern const RowKernels row_kernels;
const RowKernels row_kernels = {from_half, from_bfloat16, to_half, to_bfloat16, to_e4m3, to_e5m2, add_errors};

}  // namespace quantaria::ops::QUANTARIA_ISA
