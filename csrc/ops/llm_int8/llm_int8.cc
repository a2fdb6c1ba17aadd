#include "ops/llm_int8/llm_int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <mutex>

#include "cpu/isa.h"
#include "ops/llm_int8/llm_int8_kernels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {

namespace scalar {
extern const LlmInt8Kernels llm_int8_kernels;
}
namespace avx2 {
extern const LlmInt8Kernels llm_int8_kernels;
}
namespace avx512 {
extern const LlmInt8Kernels llm_int8_kernels;
}

namespace {

const LlmInt8Kernels& kernels() {
  const LlmInt8Kernels* const by_isa[] = {&scalar::llm_int8_kernels, &avx2::llm_int8_kernels,
                                          &avx512::llm_int8_kernels};
  return *by_isa[std::min(static_cast<size_t>(selected_isa()), std::size(by_isa) - 1)];
}

/// The pattern of the least large magnitude; above infinity's if nothing is large.
int32_t large_bits(float threshold) {
  return threshold > 0 ? std::bit_cast<int32_t>(threshold) : std::numeric_limits<int32_t>::max();
}

template <class T>
void gather(const ConstMatrix& x, int64_t r, const std::vector<int64_t>& columns, T* to) {
  for (const int64_t c : columns) {
    std::memcpy(to, x.data + (r * x.row_stride + c * x.col_stride) * static_cast<int64_t>(sizeof(T)),
                sizeof(T));
    ++to;
  }
}

}  // namespace

void outlier_mask(ThreadPool& pool, const ConstMatrix& x, float threshold, uint8_t* mask) {
  check_weight(x, "x");
  std::fill_n(mask, x.cols, uint8_t{0});
  if (x.cols == 0 || !(threshold > 0)) return;
  const int32_t large = large_bits(threshold);
  std::mutex mutex;
  for_each_strip(pool, x, [&](const Strip& strip, int64_t) {
    uint8_t* const marks = thread_buffer<uint8_t>(Slot::codes, x.cols);
    std::memset(marks, 0, static_cast<size_t>(x.cols));
    for (int64_t i = 0; i < strip.rows(); ++i) kernels().mark_large(strip.row(i), x.cols, large, marks);
    const std::lock_guard lock(mutex);
    for (int64_t c = 0; c < x.cols; ++c) mask[c] |= marks[c];
  });
}

std::vector<int64_t> outlier_columns(const uint8_t* mask, int64_t cols) {
  std::vector<int64_t> columns;
  for (int64_t c = 0; c < cols; ++c)
    if (mask[c] != 0) columns.push_back(c);
  return columns;
}

void quantize_activations(ThreadPool& pool, const ConstMatrix& x, float threshold, const uint8_t* mask,
                          float* absmax, int8_t* codes, int64_t row_bytes) {
  check_weight(x, "x");
  const int32_t large = large_bits(threshold);
  for_each_strip(pool, x, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const float* const row = strip.row(i);
      const float most = kernels().absmax(row, x.cols, large);
      absmax[first + i] = most;
      const float factor = most > 0 && std::isfinite(most) ? 127.0f / most : 0.0f;
      kernels().encode(row, x.cols, factor, mask, codes + (first + i) * row_bytes);
    }
  });
}

void gather_columns(ThreadPool& pool, const ConstMatrix& x, const std::vector<int64_t>& columns,
                    std::byte* to) {
  check_weight(x, "x");
  const auto count = static_cast<int64_t>(columns.size());
  if (count == 0) return;
  for_each_row_task(pool, x.rows, count, [&](int64_t r) {
    if (x.dtype == DType::float32)
      gather(x, r, columns, reinterpret_cast<uint32_t*>(to) + r * count);
    else
      gather(x, r, columns, reinterpret_cast<uint16_t*>(to) + r * count);
  });
}

}  // namespace quantaria::ops
