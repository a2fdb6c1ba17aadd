#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/gemm/gemm.h"
#include "ops/gptq/gptq.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Rows between two products.
constexpr int64_t kRows = 512;

}  // namespace

void add_scaled(ThreadPool& pool, const float* from, float factor, int64_t count, float* to) {
  constexpr int64_t kRun = 1 << 14;
  pool.parallel_for((count + kRun - 1) / kRun, [&](int64_t run) {
    for (int64_t i = run * kRun; i < std::min(count, (run + 1) * kRun); ++i) to[i] += factor * from[i];
  });
}

double output_error(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix* b, const float* products,
                    const Scratch& scratch) {
  check_weight(a, "weight");
  if (b != nullptr) check_weight(*b, "values");
  const int64_t in = a.cols;
  const int64_t rows = std::min(kRows, a.rows);
  if (in == 0 || rows == 0) return 0;
  const std::shared_ptr<Storage> memory = scratch((in * in + 2 * rows * in) * int64_t{sizeof(float)});
  float* const whole = reinterpret_cast<float*>(memory->data());
  float* const lost = whole + in * in;
  float* const image = lost + rows * in;
  hessian_of(pool, products, in, 2, whole);
  const ConstMatrix square{reinterpret_cast<const std::byte*>(whole), DType::float32, in, in, in, 1};
  std::vector<double> sums(static_cast<size_t>(a.rows));
  for (int64_t first = 0; first < a.rows; first += rows) {
    const int64_t count = std::min(rows, a.rows - first);
    pool.parallel_for(count, [&](int64_t row) {
      float* const to = lost + row * in;
      read_flat(a, (first + row) * in, in, to);
      if (b == nullptr) return;
      float* const other = image + row * in;
      read_flat(*b, (first + row) * in, in, other);
      for (int64_t col = 0; col < in; ++col) to[col] -= other[col];
    });
    const ConstMatrix left{reinterpret_cast<const std::byte*>(lost), DType::float32, count, in, in, 1};
    gemm(pool, left, square, {reinterpret_cast<std::byte*>(image), DType::float32, count, in, in, 1});
    pool.parallel_for(count, [&](int64_t row) {
      const float* const x = lost + row * in;
      const float* const y = image + row * in;
      double sum = 0;
      for (int64_t col = 0; col < in; ++col) sum += static_cast<double>(x[col]) * static_cast<double>(y[col]);
      sums[static_cast<size_t>(first + row)] = sum;
    });
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace quantaria::ops
