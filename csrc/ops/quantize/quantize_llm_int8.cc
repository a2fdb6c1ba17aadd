#include <cstring>

#include "ops/bitpack/bitpack.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// The row as float16 holds it, in float32.
const float* through_half(const float* row, int64_t n) {
  uint16_t* const half = thread_buffer<uint16_t>(Slot::flat, n);
  float* const rounded = thread_buffer<float>(Slot::decoded_row, n);
  row_kernels().to_half(row, n, half);
  row_kernels().from_half(half, n, rounded);
  return rounded;
}

}  // namespace

void quantize_llm_int8(ThreadPool& pool, const ConstMatrix& w, uint8_t* packed, float* absmax,
                       ErrorSums* sums) {
  check_weight(w);
  const int64_t row_bytes = packed_row_bytes(w.cols, 8);
  FiniteCheck check;
  PartSums parts(sums, w.rows);
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const int64_t r = first + i;
      const float* const row = strip.row(i);
      const float* const half = through_half(row, w.cols);
      absmax[r] = 0;
      if (w.cols == 0) continue;
      if (!check.ok(range_kernels().absmax(half, w.cols, w.cols, absmax + r))) continue;
      uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, w.cols + kCodeSlack);
      const float factor = absmax[r] == 0 ? 0.0f : 127.0f / absmax[r];
      int_kernels().encode_llm_int8(half, w.cols, factor, codes);
      std::memset(codes + w.cols, 0, kCodeSlack);
      std::memcpy(packed + r * row_bytes, codes, static_cast<size_t>(row_bytes));
      if (!parts.wanted()) continue;
      float* const decoded = thread_buffer<float>(Slot::decoded_row, w.cols);
      int_kernels().decode_llm_int8(codes, w.cols, absmax[r], decoded);
      LaneSums lanes;
      row_kernels().add_errors(row, decoded, w.cols, lanes);
      parts.put(r, lanes);
    }
  });
  check.finish(w, kLlmInt8Bound);
  parts.finish();
}

void dequantize_llm_int8(ThreadPool& pool, const uint8_t* packed, const float* absmax, int64_t out,
                         int64_t in, DType dtype, std::byte* values) {
  const int64_t row_bytes = packed_row_bytes(in, 8);
  for_each_row_task(pool, out, in, [&](int64_t r) {
    const RowWriter writer(dtype, in, values + r * in * size_of(dtype));
    int_kernels().decode_llm_int8(packed + r * row_bytes, in, absmax[r], writer.values());
    writer.finish();
  });
}

}  // namespace quantaria::ops
