#include <algorithm>
#include <cstring>

#include "numerics/small_float.h"
#include "ops/bitpack/bitpack.h"
#include "ops/quantize/float8_rule.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {

float largest_finite(Float8 format) {
  return format == Float8::e4m3 ? numerics::kMaxFinite<numerics::kE4M3>
                                : numerics::kMaxFinite<numerics::kE5M2>;
}

namespace {

void encode_fp8_row(const Fp8Scheme& scheme, const float* row, int64_t n, float scale, uint8_t* packed,
                    LaneSums* sums) {
  if (n == 0) return;
  const auto format = static_cast<size_t>(scheme.format);
  uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, n + kCodeSlack);
  small_float_kernels().encode_fp8[format](row, n, scale, codes);
  std::memset(codes + n, 0, kCodeSlack);
  std::memcpy(packed, codes, static_cast<size_t>(packed_row_bytes(n, 8)));
  if (sums == nullptr) return;
  float* const decoded = thread_buffer<float>(Slot::decoded_row, n);
  small_float_kernels().decode_fp8[format](codes, n, scale, decoded);
  row_kernels().add_errors(row, decoded, n, *sums);
}

float absmax_of(const float* row, int64_t n, FiniteCheck& check) {
  float absmax = 0;
  check.ok(range_kernels().absmax(row, n, std::max<int64_t>(1, n), &absmax));
  return absmax;
}

float tensor_absmax(ThreadPool& pool, const ConstMatrix& w, FiniteCheck& check) {
  std::vector<float> by_row(static_cast<size_t>(w.rows) + 1);
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i)
      by_row[static_cast<size_t>(first + i)] = absmax_of(strip.row(i), w.cols, check);
  });
  check.finish(w);
  return *std::max_element(by_row.begin(), by_row.end());
}

}  // namespace

void quantize_fp8(ThreadPool& pool, const ConstMatrix& w, const Fp8Scheme& scheme, uint8_t* packed,
                  float* scales, ErrorSums* sums) {
  check_weight(w);
  check_scale_dtype(scheme.scale_dtype);
  const int64_t row_bytes = packed_row_bytes(w.cols, 8);
  const Float8Rule rule = float8_rule_of(scheme);
  FiniteCheck check;
  PartSums parts(sums, w.rows);
  if (!scheme.per_row) *scales = float8_scale(rule, tensor_absmax(pool, w, check));
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const int64_t r = first + i;
      const float* const row = strip.row(i);
      if (scheme.per_row) scales[r] = float8_scale(rule, absmax_of(row, w.cols, check));
      LaneSums lanes;
      encode_fp8_row(scheme, row, w.cols, scales[scheme.per_row ? r : 0], packed + r * row_bytes,
                     parts.wanted() ? &lanes : nullptr);
      if (parts.wanted()) parts.put(r, lanes);
    }
  });
  check.finish(w);
  parts.finish();
}

void dequantize_fp8(ThreadPool& pool, const Fp8Scheme& scheme, const uint8_t* packed, const float* scales,
                    int64_t out, int64_t in, DType dtype, std::byte* values) {
  const int64_t row_bytes = packed_row_bytes(in, 8);
  const auto decode = small_float_kernels().decode_fp8[static_cast<size_t>(scheme.format)];
  for_each_row_task(pool, out, in, [&](int64_t r) {
    const RowWriter writer(dtype, in, values + r * in * size_of(dtype));
    decode(packed + r * row_bytes, in, scales[scheme.per_row ? r : 0], writer.values());
    writer.finish();
  });
}

}  // namespace quantaria::ops
