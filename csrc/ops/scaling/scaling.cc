#include "ops/scaling/scaling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/gemm/gemm.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Columns of one task, and rows of one product.
constexpr int64_t kColumns = 256;
constexpr int64_t kRows = 512;

/// body(row, values of the row, widened to float32).
template <class Body>
void for_each_wide_row(ThreadPool& pool, const ConstMatrix& w, const Body& body) {
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t r = 0; r < strip.rows(); ++r) body(first + r, strip.row(r));
  });
}

}  // namespace

void column_magnitudes(ThreadPool& pool, const ConstMatrix& x, float* maxima, float* sums) {
  check_weight(x, "x");
  pool.parallel_for((x.cols + kColumns - 1) / kColumns, [&](int64_t task) {
    const int64_t first = task * kColumns;
    const int64_t cols = std::min(kColumns, x.cols - first);
    std::vector<double> sum(static_cast<size_t>(cols));
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < x.rows; ++r) {
      read_flat(part_of(x, r, 1, first, cols), 0, cols, row.data());
      for (int64_t c = 0; c < cols; ++c) {
        const float magnitude = std::fabs(row[static_cast<size_t>(c)]);
        maxima[first + c] = std::max(maxima[first + c], magnitude);
        sum[static_cast<size_t>(c)] += static_cast<double>(magnitude);
      }
    }
    for (int64_t c = 0; c < cols; ++c) sums[first + c] += static_cast<float>(sum[static_cast<size_t>(c)]);
  });
}

void scale_matrix(ThreadPool& pool, const ConstMatrix& w, const float* rows, const float* columns,
                  float* to) {
  check_weight(w);
  for_each_wide_row(pool, w, [&](int64_t r, const float* from) {
    float* const out = to + r * w.cols;
    const float factor = rows == nullptr ? 1.0f : rows[r];
    for (int64_t c = 0; c < w.cols; ++c) out[c] = from[c] * factor;
    if (columns == nullptr) return;
    for (int64_t c = 0; c < w.cols; ++c) out[c] *= columns[c];
  });
}

void clamp_groups(ThreadPool& pool, const ConstMatrix& w, int64_t group, const float* ratios, float* to) {
  check_weight(w);
  const int64_t groups = (w.cols + group - 1) / group;
  for_each_wide_row(pool, w, [&](int64_t r, const float* from) {
    float* const out = to + r * w.cols;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t end = std::min(w.cols, (g + 1) * group);
      float most = 0;
      for (int64_t c = g * group; c < end; ++c) most = std::max(most, std::fabs(from[c]));
      const float bound = ratios[r * groups + g] * most;
      for (int64_t c = g * group; c < end; ++c) out[c] = std::min(bound, std::max(-bound, from[c]));
    }
  });
}

void round_to_scale(ThreadPool& pool, const ConstMatrix& x, float scale, float* to) {
  check_weight(x, "x");
  constexpr float kLow = -128;
  constexpr float kHigh = 127;
  for_each_wide_row(pool, x, [&](int64_t r, const float* from) {
    float* const out = to + r * x.cols;
    for (int64_t c = 0; c < x.cols; ++c) {
      const float code = std::nearbyintf(from[c] / scale);
      out[c] = (code < kLow ? kLow : code > kHigh ? kHigh : code) * scale;
    }
  });
}

void group_errors(ThreadPool& pool, const ConstMatrix& w, const ConstMatrix& v, const float* products,
                  int64_t group, float* errors) {
  check_weight(w);
  check_weight(v, "v");
  const int64_t in = w.cols;
  const int64_t groups = (in + group - 1) / group;
  const int64_t width = std::min(group, in);
  std::vector<float> block(static_cast<size_t>(width * width));
  std::vector<float> lost(static_cast<size_t>(std::min(kRows, w.rows) * in));
  std::vector<float> image(static_cast<size_t>(std::min(kRows, w.rows) * width));
  for (int64_t first = 0; first < w.rows; first += kRows) {
    const int64_t rows = std::min(kRows, w.rows - first);
    scale_matrix(pool, part_of(w, first, rows, 0, in), nullptr, nullptr, lost.data());
    for_each_wide_row(pool, part_of(v, first, rows, 0, in), [&](int64_t r, const float* from) {
      for (int64_t c = 0; c < in; ++c) lost[static_cast<size_t>(r * in + c)] -= from[c];
    });
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * group;
      const int64_t cols = std::min(group, in - begin);
      for (int64_t i = 0; i < cols; ++i)
        for (int64_t j = 0; j < cols; ++j)
          block[static_cast<size_t>(i * cols + j)] =
              products[(begin + std::min(i, j)) * in + begin + std::max(i, j)];
      const ConstMatrix d{
          reinterpret_cast<const std::byte*>(lost.data() + begin), DType::float32, rows, cols, in, 1};
      gemm(pool, d, {reinterpret_cast<const std::byte*>(block.data()), DType::float32, cols, cols, cols, 1},
           {reinterpret_cast<std::byte*>(image.data()), DType::float32, rows, cols, cols, 1});
      pool.parallel_for(rows, [&](int64_t r) {
        double sum = 0;
        for (int64_t c = 0; c < cols; ++c)
          sum += static_cast<double>(lost[static_cast<size_t>(r * in + begin + c)]) *
                 static_cast<double>(image[static_cast<size_t>(r * cols + c)]);
        errors[(first + r) * groups + g] = static_cast<float>(sum);
      });
    }
  }
}

}  // namespace quantaria::ops
