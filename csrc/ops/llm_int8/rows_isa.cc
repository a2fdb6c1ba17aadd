#include "cpu/lanes.h"
#include "ops/llm_int8/llm_int8_kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000;

/// All ones where a magnitude's bits are those of a large value. NaN's lie above infinity's.
QUANTARIA_LANES Ints is_large(const Ints& magnitude, int32_t large) {
  return each<Ints>([large](auto m) -> IntRegister { return (m >= large) & (m <= kInfinityBits); },
                    magnitude);
}

void mark_large(const float* row, int64_t n, int32_t large, uint8_t* mask) {
  // Nearly all runs hold none, which one look at their combined lanes tells.
  constexpr int64_t kRun = 32 * kLanes;
  for (int64_t start = 0; start < n; start += kRun) {
    const int64_t count = n - start < kRun ? n - start : kRun;
    Ints found = splat(int32_t{0});
    for_each_lanes(row + start, count,
                   [&](int64_t, const Floats& x) { found = found | is_large(magnitude_bits(x), large); });
    if (largest_of(found & splat(int32_t{1})) == 0) continue;
    for (int64_t i = start; i < start + count; ++i) {
      int32_t magnitude = 0;
      std::memcpy(&magnitude, row + i, sizeof magnitude);
      magnitude &= 0x7fffffff;
      mask[i] |= static_cast<uint8_t>(magnitude >= large && magnitude <= kInfinityBits);
    }
  }
}

float absmax(const float* row, int64_t n, int32_t large) {
  Ints most = splat(int32_t{0});
  for_each_lanes(row, n, [&](int64_t, const Floats& x) {
    const Ints magnitude = magnitude_bits(x);
    const Ints keep = each<Ints>([](auto m) { return ~m; }, is_large(magnitude, large));
    most = larger(most, magnitude & keep);
  });
  const int32_t bits_of_most = largest_of(most);
  float value = 0;
  std::memcpy(&value, &bits_of_most, sizeof value);
  return value;
}

void encode(const float* row, int64_t n, float factor, const uint8_t* mask, int8_t* codes) {
  // Adding 1.5 * 2^23 rounds to an integer, to nearest even, and leaves it in the low bits.
  constexpr float kRoundingMagic = 12582912.0f;
  for_each_lanes(row, n, [&](int64_t first, const Floats& x) {
    const Floats scaled = x * splat(factor);
    const Floats clamped = smaller(larger(scaled, splat(-127.0f)), splat(127.0f));
    const Ints is_number = each<Ints>([](auto v) -> IntRegister { return v == v; }, scaled);
    Ints code = bits(clamped + splat(kRoundingMagic)) & is_number;
    if (first + kLanes <= n) {
      if (mask != nullptr)
        code = code & (widen(mask + first) - splat(int32_t{1}));  // 1 - 1 = 0, 0 - 1 = all ones
      store_low(reinterpret_cast<uint8_t*>(codes + first), code);
      return;
    }
    uint8_t last[kLanes];
    store_low(last, code);
    for (int64_t i = 0; first + i < n; ++i)
      codes[first + i] = mask != nullptr && mask[first + i] != 0 ? int8_t{0} : static_cast<int8_t>(last[i]);
  });
}

}  // namespace

extern const LlmInt8Kernels llm_int8_kernels;
const LlmInt8Kernels llm_int8_kernels = {mark_large, absmax, encode};

}  // namespace quantaria::ops::QUANTARIA_ISA
