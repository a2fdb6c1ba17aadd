#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "ops/gptq/gptq.h"
#include "ops/quantize/int_grid.h"
#include "quantize_test.h"

/// GPTQ as its paper has it, in float64: the inverse of the damped Hessian, its upper Cholesky factor,
/// columns one by one with every error spread at once. A group's grid is fitted when its first column is
/// reached.
namespace quantaria::test {

using ops::GptqOptions;
using ops::Granularity;
using ops::IntScheme;
using ops::IntStored;
using Square = std::vector<double>;

/// States whose features depend on each other; the columns of `dead` are 0.
inline std::vector<float> make_states(int64_t rows, int64_t in, uint32_t seed,
                                      const std::vector<int64_t>& dead = {}) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(static_cast<size_t>(rows * in));
  for (int64_t r = 0; r < rows; ++r) {
    const float common = normal(random);
    float previous = 0;
    for (int64_t c = 0; c < in; ++c) {
      previous = 0.6f * previous + normal(random);
      x[static_cast<size_t>(r * in + c)] = (previous + common) * (0.2f + static_cast<float>(c % 7));
    }
    for (const int64_t c : dead) x[static_cast<size_t>(r * in + c)] = 0;
  }
  return x;
}

/// sum x^T x, both triangles.
inline Square products_of(const std::vector<float>& x, int64_t in) {
  Square sum(static_cast<size_t>(in * in));
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(in))
    for (int64_t i = 0; i < in; ++i)
      for (int64_t j = 0; j < in; ++j)
        sum[static_cast<size_t>(i * in + j)] +=
            static_cast<double>(x[row + static_cast<size_t>(i)]) * x[row + static_cast<size_t>(j)];
  return sum;
}

/// tr(d h d^T), d [rows, in].
template <class Rows>
double energy(const Rows& d, const Square& h, int64_t in) {
  double total = 0;
  for (size_t row = 0; row < d.size(); row += static_cast<size_t>(in))
    for (int64_t i = 0; i < in; ++i)
      for (int64_t j = 0; j < in; ++j)
        total += static_cast<double>(d[row + static_cast<size_t>(i)]) * h[static_cast<size_t>(i * in + j)] *
                 static_cast<double>(d[row + static_cast<size_t>(j)]);
  return total;
}

/// The lower triangular l with a = l l^T.
inline Square lower_factor(Square a, int64_t n) {
  const auto at = [n](Square& m, int64_t i, int64_t j) -> double& {
    return m[static_cast<size_t>(i * n + j)];
  };
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k < j; ++k)
      for (int64_t i = j; i < n; ++i) at(a, i, j) -= at(a, i, k) * at(a, j, k);
    const double root = std::sqrt(at(a, j, j));
    for (int64_t i = j; i < n; ++i) at(a, i, j) /= root;
    for (int64_t i = 0; i < j; ++i) at(a, i, j) = 0;
  }
  return a;
}

/// a^-1 from its factor.
inline Square inverse_of(const Square& a, int64_t n) {
  const Square l = lower_factor(a, n);
  Square inverse(a.size());
  for (int64_t c = 0; c < n; ++c) {
    std::vector<double> y(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      double sum = i == c ? 1 : 0;
      for (int64_t k = 0; k < i; ++k) sum -= l[static_cast<size_t>(i * n + k)] * y[static_cast<size_t>(k)];
      y[static_cast<size_t>(i)] = sum / l[static_cast<size_t>(i * n + i)];
    }
    for (int64_t i = n; i-- > 0;) {
      double sum = y[static_cast<size_t>(i)];
      for (int64_t k = i + 1; k < n; ++k)
        sum -= l[static_cast<size_t>(k * n + i)] * inverse[static_cast<size_t>(k * n + c)];
      inverse[static_cast<size_t>(i * n + c)] = sum / l[static_cast<size_t>(i * n + i)];
    }
  }
  return inverse;
}

struct GptqResult {
  std::vector<int32_t> codes;  // as stored, in the weight's order
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  std::vector<int32_t> group_index;
  std::vector<float> values;
  ops::GptqReport report;
};

/// `h`: the products; the grids of row, tensor, column and static groups come in `fixed`.
inline GptqResult gptq_by_definition(const Weight& w, const Square& h, const IntScheme& scheme,
                                     const GptqOptions& options, const GptqResult* fixed) {
  const int64_t in = w.cols;
  const auto index = [](int64_t i) { return static_cast<size_t>(i); };
  std::vector<int64_t> order(index(in));
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto diagonal = [&](int64_t c) { return h[index(c * in + c)]; };
  if (options.act_order)
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return diagonal(a) > diagonal(b); });
  const bool whole = options.act_order && options.group_order && !options.static_groups &&
                     scheme.granularity == Granularity::group;
  if (whole) {
    const auto largest = [&](int64_t c) {
      const int64_t first = c / scheme.group_size * scheme.group_size;
      if (first + scheme.group_size > in) return -1.0;  // a short group comes last
      double most = 0;
      for (int64_t i = first; i < first + scheme.group_size; ++i) most = std::max(most, diagonal(i));
      return most;
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const int64_t own = a / scheme.group_size;
      const int64_t other = b / scheme.group_size;
      return own != other && (largest(a) != largest(b) ? largest(a) > largest(b) : own < other);
    });
  }
  double mean = 0;
  int64_t live = 0;
  for (int64_t c = 0; c < in; ++c) mean += diagonal(c), live += diagonal(c) != 0;
  mean = live > 0 ? mean / static_cast<double>(live) : 1;
  Square damped(h.size());
  for (int64_t i = 0; i < in; ++i)
    for (int64_t j = 0; j < in; ++j)
      damped[index(i * in + j)] = h[index(order[index(i)] * in + order[index(j)])];
  for (int64_t i = 0; i < in; ++i) {
    double& d = damped[index(i * in + i)];
    d = (d == 0 ? mean : d) + options.damping * mean;
  }
  const Square lower = lower_factor(inverse_of(damped, in), in);  // its transpose is U

  const ops::ConstantsShape shape = ops::constants_shape(scheme, w.rows, in);
  const ops::IntLimits limits = ops::limits_of(scheme);
  const bool fits = scheme.granularity == Granularity::group && !options.static_groups;
  GptqResult result;
  result.codes.resize(w.values.size());
  result.values.resize(w.values.size());
  result.scales.resize(index(shape.rows * shape.cols));
  result.zeros.resize(result.scales.size());
  for (int64_t r = 0; r < w.rows; ++r) {
    std::vector<double> row(index(in));
    for (int64_t p = 0; p < in; ++p)
      row[index(p)] = diagonal(order[index(p)]) == 0 ? 0 : static_cast<double>(w.at(r, order[index(p)]));
    for (int64_t p = 0; p < in; ++p) {
      const int64_t c = order[index(p)];
      int64_t g = scheme.granularity == Granularity::column  ? c
                  : scheme.granularity == Granularity::group ? (fits && !whole ? p : c) / scheme.group_size
                                                             : 0;
      g += shape.rows == 1 ? 0 : r * shape.cols;
      if (fits && p % scheme.group_size == 0) {
        std::vector<float> group;
        for (int64_t j = p; j < std::min(in, p + scheme.group_size); ++j)
          group.push_back(static_cast<float>(row[index(j)]));
        float low = std::min(0.0f, *std::min_element(group.begin(), group.end()));
        float high = std::max(0.0f, *std::max_element(group.begin(), group.end()));
        if (scheme.symmetric) high = std::max(high, -low), low = -high;
        const auto n = static_cast<int64_t>(group.size());
        const ops::IntGrid grid = scheme.mse_search ? ops::search_grid(scheme, group.data(), n, low, high)
                                                    : ops::fit_grid(scheme, low, high);
        result.scales[index(g)] = grid.scale;
        result.zeros[index(g)] = grid.zero;
      } else if (!fits) {
        result.scales[index(g)] = fixed->scales[index(g)];
        result.zeros[index(g)] = scheme.symmetric ? 0 : fixed->zeros[index(g)];
      }
      const double scale = result.scales[index(g)];
      const double zero = result.zeros[index(g)];
      const double code = std::clamp(std::nearbyint(row[index(p)] / scale) + zero,
                                     static_cast<double>(limits.low), static_cast<double>(limits.high));
      result.codes[index(r * in + c)] = static_cast<int32_t>(code) + limits.offset;
      result.values[index(r * in + c)] = static_cast<float>((code - zero) * scale);
      const double error = (row[index(p)] - (code - zero) * scale) / lower[index(p * in + p)];
      for (int64_t j = p; j < in; ++j) row[index(j)] -= error * lower[index(j * in + p)];
    }
  }
  if (fits && options.act_order && !whole) {
    result.group_index.resize(index(in));
    for (int64_t p = 0; p < in; ++p)
      result.group_index[index(order[index(p)])] = static_cast<int32_t>(p / scheme.group_size);
  }
  return result;
}

/// Memory that reads as NaN until it is written.
inline std::shared_ptr<Storage> scratch(int64_t bytes) {
  const auto owner = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(bytes), uint8_t{0xff});
  return std::make_shared<Storage>(owner, reinterpret_cast<std::byte*>(owner->data()), bytes, true);
}

inline std::vector<float> as_floats(const Square& values) { return {values.begin(), values.end()}; }

/// The operation, with poisoned outputs; `products` [in, in].
inline GptqResult run_gptq(ThreadPool& pool, const Weight& w, const std::vector<float>& products,
                           const IntScheme& scheme, const GptqOptions& options, int64_t samples = 2,
                           const ConstMatrix* beside = nullptr) {
  const ops::ConstantsShape shape = ops::constants_shape(scheme, w.rows, w.cols);
  const int64_t row_bytes = ops::packed_row_bytes(w.cols, scheme.bits);
  GptqResult result;
  std::vector<uint8_t> packed(static_cast<size_t>(w.rows * row_bytes), 0xa5);
  result.scales.assign(static_cast<size_t>(shape.rows * shape.cols), std::nanf(""));
  result.zeros.assign(result.scales.size(), -99);
  const bool indexed = options.act_order && !options.group_order && !options.static_groups &&
                       scheme.granularity == Granularity::group;
  if (indexed) result.group_index.assign(static_cast<size_t>(w.cols), -7);
  int32_t* const zeros = scheme.symmetric ? nullptr : result.zeros.data();
  int32_t* const group_index = indexed ? result.group_index.data() : nullptr;
  const ops::GptqProblem problem{{w.view(), products.data(), samples, beside},
                                 {packed.data(), result.scales.data(), zeros},
                                 group_index};
  result.report = ops::quantize_gptq(pool, problem, scheme, options, scratch);
  if (scheme.symmetric) std::fill(result.zeros.begin(), result.zeros.end(), 0);
  result.codes.assign(w.values.size(), -1);
  const Matrix codes{
      reinterpret_cast<std::byte*>(result.codes.data()), DType::int32, w.rows, w.cols, w.cols, 1};
  ops::unpack_bits(pool, packed.data(), row_bytes, scheme.bits, 0, codes);
  result.values.assign(w.values.size(), std::nanf(""));
  ops::dequantize_int(pool, scheme, {packed.data(), result.scales.data(), zeros, group_index}, w.rows, w.cols,
                      DType::float32, reinterpret_cast<std::byte*>(result.values.data()));
  return result;
}

}  // namespace quantaria::test
