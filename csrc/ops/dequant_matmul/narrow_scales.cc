#include "ops/dequant_matmul/narrow_scales.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "ops/copy/convert.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kChunk = 512;

const std::byte* bytes_of(const float* values) { return reinterpret_cast<const std::byte*>(values); }

bool all_are_values_of(DType dtype, const float* scales, int64_t count) {
  std::byte narrow[kChunk * 2];
  float wide[kChunk];
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t n = std::min(kChunk, count - i);
    convert_row(DType::float32, bytes_of(scales + i), dtype, narrow, n);
    convert_row(dtype, narrow, DType::float32, reinterpret_cast<std::byte*>(wide), n);
    if (std::memcmp(wide, scales + i, static_cast<size_t>(n * 4)) != 0) return false;
  }
  return true;
}

}  // namespace

DType narrow_scales(float* scales, int64_t count) {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    if (!all_are_values_of(dtype, scales, count)) continue;
    auto* const to = reinterpret_cast<std::byte*>(scales);
    std::byte narrow[kChunk * 2];  // what is written lies at or before what was read
    for (int64_t i = 0; i < count; i += kChunk) {
      const int64_t n = std::min(kChunk, count - i);
      convert_row(DType::float32, bytes_of(scales + i), dtype, narrow, n);
      std::memcpy(to + 2 * i, narrow, static_cast<size_t>(2 * n));
    }
    return dtype;
  }
  return DType::float32;
}

void widen_scales(float* scales, int64_t count, DType narrowed) {
  if (narrowed == DType::float32) return;
  auto* const from = reinterpret_cast<std::byte*>(scales);
  std::byte narrow[kChunk * 2];
  for (int64_t end = count; end > 0;) {  // from the back: what is written lies at or behind what is left
    const int64_t n = std::min(kChunk, end);
    end -= n;
    std::memcpy(narrow, from + 2 * end, static_cast<size_t>(2 * n));
    convert_row(narrowed, narrow, DType::float32, from + 4 * end, n);
  }
}

}  // namespace quantaria::ops
