#include "cpu/lanes.h"
#include "ops/hadamard/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

/// A stage of the transform between lanes `kApart` apart: the sum in the lower lane, the difference in the
/// upper one.
template <int kApart>
QUANTARIA_LANES Floats stage_in_lanes(const Floats& x) {
  Floats result;
  if constexpr (kApart >= kPerRegister) {
    constexpr int kPartsApart = kApart / kPerRegister;
    for (int i = 0; i < kRegisters; ++i) {
      if ((i & kPartsApart) != 0) continue;
      result.part[i] = x.part[i] + x.part[i + kPartsApart];
      result.part[i + kPartsApart] = x.part[i] - x.part[i + kPartsApart];
    }
  } else {
    IntRegister other;
    IntRegister sign;
    for (int lane = 0; lane < kPerRegister; ++lane) {
      other[lane] = lane ^ kApart;
      sign[lane] = (lane & kApart) != 0 ? INT32_MIN : 0;
    }
    for (int i = 0; i < kRegisters; ++i) {
      const auto own = reinterpret_cast<FloatRegister>(reinterpret_cast<IntRegister>(x.part[i]) ^ sign);
      result.part[i] = __builtin_shuffle(x.part[i], other) + own;
    }
  }
  return result;
}

template <int kSize>
QUANTARIA_LANES Floats stages_in_lanes(Floats x) {
  if constexpr (kSize > 1) x = stage_in_lanes<1>(x);
  if constexpr (kSize > 2) x = stage_in_lanes<2>(x);
  if constexpr (kSize > 4) x = stage_in_lanes<4>(x);
  if constexpr (kSize > 8) x = stage_in_lanes<8>(x);
  return x;
}

/// All stages between kCount vectors.
template <int kCount>
QUANTARIA_LANES void stages_between(Floats (&x)[kCount]) {
#pragma GCC unroll 4
  for (int apart = kCount / 2; apart > 0; apart /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      if ((i & apart) != 0) continue;
      const Floats sum = x[i] + x[i + apart];
      x[i + apart] = x[i] - x[i + apart];
      x[i] = sum;
    }
  }
}

/// kCount * 16 elements in registers from the first stage to the last.
template <int kCount>
QUANTARIA_LANES void transform_in_registers(const float* from, float scale, float* to, const Ahead& ahead) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    __builtin_prefetch(ahead.from + i * kLanes);
    __builtin_prefetch(ahead.to + i * kLanes, 1);
  }
  Floats x[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) x[i] = load(from + i * kLanes);
  stages_between(x);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) store(to + i * kLanes, stages_in_lanes<kLanes>(x[i]) * splat(scale));
}

/// The three stages between eighths of a row in one pass over it.
void pass_of_eighths(const float* from, int64_t size, float* to) {
  const int64_t eighth = size / 8;
  for (int64_t at = 0; at < eighth; at += kLanes) {
    Floats x[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) x[i] = load(from + i * eighth + at);
    stages_between(x);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store(to + i * eighth + at, x[i]);
  }
}

/// Depth first, so that a part stays in the first-level cache from its first pass to its last.
void sylvester(const float* from, int64_t size, float scale, float* to, const Ahead& ahead) {
  switch (size) {
    case kLanes:
      return transform_in_registers<1>(from, scale, to, ahead);
    case 2 * kLanes:
      return transform_in_registers<2>(from, scale, to, ahead);
    case 4 * kLanes:
      return transform_in_registers<4>(from, scale, to, ahead);
    case 8 * kLanes:
      return transform_in_registers<8>(from, scale, to, ahead);
    default:
      break;
  }
  pass_of_eighths(from, size, to);
  for (int64_t at = 0; at < size; at += size / 8)
    sylvester(to + at, size / 8, scale, to + at, {ahead.from + at, ahead.to + at});
}

template <int kSize>
QUANTARIA_LANES void transform_runs(float* row, int64_t count, float scale) {
  for (int64_t at = 0; at < count; at += kLanes)
    store(row + at, stages_in_lanes<kSize>(load(row + at)) * splat(scale));
}

void sylvester_of_runs(float* row, int64_t count, int64_t size, float scale) {
  switch (size) {
    case 1:
      return transform_runs<1>(row, count, scale);
    case 2:
      return transform_runs<2>(row, count, scale);
    case 4:
      return transform_runs<4>(row, count, scale);
    default:
      return transform_runs<8>(row, count, scale);
  }
}

// Products with a sign are exact, so fused and separate additions round alike.

void base_of_blocks(const float* from, const float* signs, int64_t m, int64_t size, float* to) {
  constexpr int kRows = 4;
  for (int64_t at = 0; at < size; at += kLanes)
    for (int64_t i = 0; i < m; i += kRows) {
      Floats sums[kRows];
      for (Floats& sum : sums) sum = splat(0.0f);
      for (int64_t j = 0; j < m; ++j) {
        const Floats x = load(from + j * size + at);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r] = multiply_add(splat(signs[(i + r) * m + j]), x, sums[r]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) store(to + (i + r) * size + at, sums[r]);
    }
}

void base_of_elements(const float* from, const float* signs, int64_t m, int64_t size, int64_t count,
                      float* to) {
  for (int64_t at = 0; at < count; at += kLanes) store(to + at, splat(0.0f));
  for (int64_t j = 0; j < m; ++j) {
    float block[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) block[lane] = from[j * size + lane % size];
    const Floats x = load(block);
    for (int64_t at = 0; at < count; at += kLanes)
      store(to + at, multiply_add(load(signs + j * count + at), x, load(to + at)));
  }
}

}  // namespace

extern const HadamardKernels hadamard_kernels;
const HadamardKernels hadamard_kernels = {sylvester, sylvester_of_runs, base_of_blocks, base_of_elements};

}  // namespace quantaria::ops::QUANTARIA_ISA
