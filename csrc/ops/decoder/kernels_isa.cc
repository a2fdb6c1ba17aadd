#include "ops/decoder/kernels.h"

#include "cpu/exponential.h"
#include "cpu/lanes.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

/// Elements whose float sums are added up before they go into a double.
constexpr int64_t kSumBlock = 4096;

/// Padding does not count: elements past n are `rest`.
Floats load_up_to(const float* from, int64_t count, float rest) {
  if (count >= kLanes) return load(from);
  alignas(64) float padded[kLanes];
  for (int i = 0; i < kLanes; ++i) padded[i] = rest;
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(float));
  return load(padded);
}

void store_up_to(float* to, const Floats& x, int64_t count) {
  count >= kLanes ? store(to, x) : store_some(to, x, count);
}

/// Sum over blocks of f(i, count): each block in lanes, the blocks in double.
template <class F>
double sum_in_blocks(int64_t n, const F& f) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    Floats sum = splat(0.0f);
    for (int64_t i = begin; i < end; i += kLanes) sum = f(i, end - i, sum);
    total += static_cast<double>(sum_of(sum));
  }
  return total;
}

void rms_norm(const float* x, const float* gain, float eps, int64_t n, float* to) {
  const double squares = sum_in_blocks(n, [&](int64_t i, int64_t count, const Floats& sum) {
    const Floats v = load_up_to(x + i, count, 0.0f);
    return multiply_add(v, v, sum);
  });
  const double mean = squares / static_cast<double>(n) + static_cast<double>(eps);
  const Floats factor = splat(static_cast<float>(1.0 / __builtin_sqrt(mean)));
  for (int64_t i = 0; i < n; i += kLanes)
    store_up_to(to + i, load_up_to(x + i, n - i, 0.0f) * factor * load_up_to(gain + i, n - i, 0.0f), n - i);
}

template <int rows>
QUANTARIA_LANES void product_of_rows(const float* a, int64_t lda, int64_t depth, const float* b, int64_t ldb,
                                     float* c, int64_t ldc) {
  Floats sum[rows];
  for (int r = 0; r < rows; ++r) sum[r] = splat(0.0f);
  for (int64_t i = 0; i < depth; ++i) {
    const Floats column = load(b + i * ldb);
    for (int r = 0; r < rows; ++r) sum[r] = multiply_add(splat(a[r * lda + i]), column, sum[r]);
  }
  for (int r = 0; r < rows; ++r) store(c + r * ldc, sum[r]);
}

void product(const float* a, int64_t lda, int64_t rows, int64_t depth, const float* b, int64_t ldb, float* c,
             int64_t ldc) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) product_of_rows<8>(a + r * lda, lda, depth, b, ldb, c + r * ldc, ldc);
  for (; r < rows; ++r) product_of_rows<1>(a + r * lda, lda, depth, b, ldb, c + r * ldc, ldc);
}

float largest_of_row(const float* x, int64_t n) {
  const float lowest = -__builtin_inff();
  Floats most = splat(lowest);
  for (int64_t i = 0; i < n; i += kLanes) most = larger(load_up_to(x + i, n - i, lowest), most);
  return largest_of(most);
}

/// e^difference for differences of at most 0. NaN stays NaN: it wins neither comparison, and x - x has it
/// too.
Floats exponential_of_difference(const Floats& x) { return exponential(larger(splat(-87.0f), x)) + (x - x); }

float exponentials(float* x, int64_t n) {
  const Floats most = splat(largest_of_row(x, n));
  Floats sum = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats e = exponential_of_difference(load_up_to(x + i, n - i, 0.0f) - most);
    store_up_to(x + i, e, n - i);
    sum = sum + load_up_to(x + i, n - i, 0.0f);
  }
  return sum_of(sum);
}

LogitSum logit_sum(const float* x, int64_t n) {
  const float largest = largest_of_row(x, n);
  const Floats most = splat(largest);
  const double sum = sum_in_blocks(n, [&](int64_t i, int64_t count, const Floats& so_far) {
    const Floats e = exponential_of_difference(load_up_to(x + i, count, largest) - most);
    if (count >= kLanes) return so_far + e;
    alignas(64) float some[kLanes];
    store(some, e);
    return so_far + load_some(some, count);
  });
  return {largest, sum};
}

double divergence(const float* b, float largest, const float* a, float other_largest, int64_t n) {
  const Floats most = splat(largest);
  const Floats other_most = splat(other_largest);
  return sum_in_blocks(n, [&](int64_t i, int64_t count, const Floats& sum) {
    // Past the end both differences are 0, and so is what is added.
    const Floats x = load_up_to(b + i, count, largest) - most;
    const Floats y = load_up_to(a + i, count, other_largest) - other_most;
    return multiply_add(exponential_of_difference(x), x - y, sum);
  });
}

}  // namespace

extern const DecoderKernels decoder_kernels;
const DecoderKernels decoder_kernels = {rms_norm, product, exponentials, logit_sum, divergence};

}  // namespace quantaria::ops::QUANTARIA_ISA
