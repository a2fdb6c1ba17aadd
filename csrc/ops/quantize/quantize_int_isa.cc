#include "cpu/lanes.h"
#include "ops/quantize/int_lanes.h"
#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

using numerics::kRoundingMagic;

template <bool kSums>
struct Errors {
  explicit Errors(LaneSums* sums) : to(sums) {
    if constexpr (kSums) error = load(to->error), weight = load(to->weight);
  }
  ~Errors() {
    if constexpr (kSums) store(to->error, error), store(to->weight, weight);
  }
  [[gnu::always_inline]] void add(const Floats& w, const Floats& kept) {
    if constexpr (kSums) {
      const Floats lost = w - kept;
      error = error + lost * lost;
      weight = weight + w * w;
    }
  }
  LaneSums* to;
  Floats error;
  Floats weight;
};

template <bool kSums, class Code>
QUANTARIA_LANES void encode_lanes(const Floats& w, const Grid& grid, Code* code, Errors<kSums>& errors) {
  const Floats magic = rounded(w, grid);
  store_low(code, bits(magic) + grid.offset);
  errors.add(w, (magic - splat(kRoundingMagic)) * grid.scale);
}

template <bool kSums, class Code>
void encode_groups(const float* row, int64_t n, int64_t group, const float* scales, const float* zeros,
                   const IntLimits& limits, Code* codes, LaneSums* sums) {
  Errors<kSums> errors(sums);
  for (int64_t first = 0, g = 0; first < n; first += group, ++g) {
    const int64_t size = n - first < group ? n - first : group;
    const Grid grid = grid_of(splat(scales[g]), splat(zeros == nullptr ? 0.0f : zeros[g]), limits);
    for_each_lanes(row + first, size, [&](int64_t j, const Floats& w) {
      encode_lanes<kSums>(w, grid, codes + first + j, errors);
    });
  }
}

template <class Code>
void encode(const float* row, int64_t n, int64_t group, const float* scales, const float* zeros,
            const IntLimits& limits, Code* codes, LaneSums* sums) {
  const auto run = sums == nullptr ? encode_groups<false, Code> : encode_groups<true, Code>;
  run(row, n, group, scales, zeros, limits, codes, sums);
}

template <bool kSums, class Code>
void encode_each_column(const float* row, int64_t n, const float* scales, const float* zeros,
                        const IntLimits& limits, Code* codes, LaneSums* sums) {
  Errors<kSums> errors(sums);
  for_each_lanes(row, n, [&](int64_t j, const Floats& w) {
    const Floats zero = zeros == nullptr ? splat(0.0f) : load(zeros + j);
    encode_lanes<kSums>(w, grid_of(load(scales + j), zero, limits), codes + j, errors);
  });
}

template <class Code>
void encode_columns(const float* row, int64_t n, const float* scales, const float* zeros,
                    const IntLimits& limits, Code* codes, LaneSums* sums) {
  const auto run = sums == nullptr ? encode_each_column<false, Code> : encode_each_column<true, Code>;
  run(row, n, scales, zeros, limits, codes, sums);
}

template <class Code>
void decode(const Code* codes, int64_t n, int64_t group, const float* scales, const float* zeros,
            float* row) {
  for (int64_t first = 0, g = 0; first < n; first += group, ++g) {
    const int64_t last = n - first < group ? n : first + group;
    const float zero = zeros[g];
    const float scale = scales[g];
    for (int64_t j = first; j < last; ++j) row[j] = (static_cast<float>(codes[j]) - zero) * scale;
  }
}

template <class Code>
void decode_columns(const Code* codes, int64_t n, const float* scales, const float* zeros, float* row) {
  for (int64_t j = 0; j < n; ++j) row[j] = (static_cast<float>(codes[j]) - zeros[j]) * scales[j];
}

/// x^(1.2) for x >= 0, to a few units in the last place: x * (x z^4) with z = x^(-1/5) by Newton's
/// iteration, which needs no division. Plain multiplications and additions, the same on each machine.
QUANTARIA_LANES Floats power_1_2(const Floats& x) {
  // -1/5 of the bits is -1/5 of the logarithm, roughly: 4 % off at most.
  const Floats exponent = to_floats(bits(x)) * splat(-0.2f) + splat(1.2f * 1064995000.0f);
  Floats z = as_floats(truncate(exponent));
  for (int i = 0; i < 4; ++i) {
    const Floats z2 = z * z;
    z = z * (splat(1.2f) - splat(0.2f) * ((x * z) * (z2 * z2)));
  }
  const Floats z2 = z * z;
  return x * ((x * z2) * z2);
}

double shrink_error(const float* group, int64_t n, float scale, float zero, const IntLimits& limits,
                    float unit, double bound) {
  const Grid grid = grid_of(splat(scale), splat(zero), limits);
  // Sums only grow, lane by lane and so in the fold, which makes stopping early exact.
  constexpr int64_t kElementsPerCheck = 128;
  Floats sum = splat(0.0f);
  for (int64_t first = 0; first < n; first += kElementsPerCheck) {
    const int64_t size = n - first < kElementsPerCheck ? n - first : kElementsPerCheck;
    for_each_lanes(group + first, size, [&](int64_t, const Floats& w) {
      const Floats kept = (rounded(w, grid) - splat(kRoundingMagic)) * grid.scale;
      const Floats lost = (w - kept) * splat(unit);
      sum = sum + power_1_2(lost * lost);
    });
    if (static_cast<double>(sum_of(sum)) >= bound) break;
  }
  return static_cast<double>(sum_of(sum));
}

void encode_llm_int8(const float* row, int64_t n, float factor, uint8_t* codes) {
  for_each_lanes(row, n, [&](int64_t j, const Floats& w) {
    store_low(codes + j, bits(w * splat(factor) + splat(kRoundingMagic)) + splat(int32_t{128}));
  });
}

void decode_llm_int8(const uint8_t* codes, int64_t n, float absmax, float* row) {
  for (int64_t j = 0; j < n; ++j) row[j] = static_cast<float>(codes[j] - 128) * absmax / 127.0f;
}

}  // namespace

extern const IntKernels int_kernels;
const IntKernels int_kernels = {
    encode<uint8_t>, encode<uint16_t>, encode_columns<uint8_t>, encode_columns<uint16_t>,
    decode<uint8_t>, decode<uint16_t>, decode_columns<uint8_t>, decode_columns<uint16_t>,
    shrink_error,    encode_llm_int8,  decode_llm_int8,
};

}  // namespace quantaria::ops::QUANTARIA_ISA
