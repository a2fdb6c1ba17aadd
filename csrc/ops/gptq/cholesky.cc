#include "ops/gptq/cholesky.h"

#include <algorithm>
#include <cstring>

#include "ops/gemm/gemm.h"
#include "ops/gptq/kernels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kTriangle = kBlockCols;

/// The first half, in whole triangles.
int64_t half_of(int64_t size) { return (size / 2 + kTriangle - 1) / kTriangle * kTriangle; }

}  // namespace

ReversedCholesky::ReversedCholesky(ThreadPool& pool, float* a, int64_t n)
    : pool_(pool),
      a_(a),
      n_(n),
      inverses_(static_cast<size_t>((n + kTriangle - 1) / kTriangle * kTriangle * kTriangle)),
      solved_(static_cast<size_t>(n * kTriangle)) {}

Matrix ReversedCholesky::part(Range rows, Range cols) const {
  float* const corner = a_ + rows.first * n_ + cols.first;
  return {reinterpret_cast<std::byte*>(corner), DType::float32, rows.size, cols.size, n_, 1};
}

bool ReversedCholesky::factor(Range range) {
  if (range.size <= kTriangle) return factor_triangle(range);
  const Range low{range.first, half_of(range.size)};
  const Range high{range.first + low.size, range.size - low.size};
  if (!factor(high)) return false;
  solve(low, high);
  const ConstMatrix beside = part(low, high);
  gemm(pool_, beside, transposed_view(beside), part(low, low),
       {.accumulate = true, .alpha = -1, .part = Part::upper});
  return factor(low);
}

bool ReversedCholesky::factor_triangle(Range range) {
  const int64_t n = range.size;
  std::vector<double> triangle(static_cast<size_t>(n * n));
  std::vector<double> inverse(triangle.size());
  float* const corner = a_ + range.first * n_ + range.first;
  for (int64_t i = 0; i < n; ++i)
    std::copy(corner + i * n_ + i, corner + i * n_ + n, triangle.begin() + i * n + i);
  if (!gptq_kernels().factor(triangle.data(), n)) return false;
  gptq_kernels().invert(triangle.data(), n, inverse.data());
  float* const to = inverses_.data() + range.first / kTriangle * kTriangle * kTriangle;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) {
      corner[i * n_ + j] = static_cast<float>(triangle[static_cast<size_t>(i * n + j)]);
      to[i * kTriangle + j] = static_cast<float>(inverse[static_cast<size_t>(i * n + j)]);
    }
  return true;
}

// X R^T = B with R = [R1 S; 0 R2] is X2 R2^T = B2, then X1 R1^T = B1 - X2 S^T.
void ReversedCholesky::solve(Range rows, Range cols) {
  if (cols.size <= kTriangle) return solve_triangle(rows, cols);
  const Range low{cols.first, half_of(cols.size)};
  const Range high{cols.first + low.size, cols.size - low.size};
  solve(rows, high);
  gemm(pool_, part(rows, high), transposed_view(part(low, high)), part(rows, low),
       {.accumulate = true, .alpha = -1});
  solve(rows, low);
}

void ReversedCholesky::solve_triangle(Range rows, Range cols) {
  const float* const inverse = inverses_.data() + cols.first / kTriangle * kTriangle * kTriangle;
  const ConstMatrix transposed{
      reinterpret_cast<const std::byte*>(inverse), DType::float32, cols.size, cols.size, 1, kTriangle};
  const Matrix solved{
      reinterpret_cast<std::byte*>(solved_.data()), DType::float32, rows.size, cols.size, kTriangle, 1};
  gemm(pool_, part(rows, cols), transposed, solved);
  constexpr int64_t kRows = 64;
  pool_.parallel_for((rows.size + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t r = task * kRows; r < std::min(rows.size, (task + 1) * kRows); ++r)
      std::memcpy(a_ + (rows.first + r) * n_ + cols.first, solved_.data() + r * kTriangle,
                  static_cast<size_t>(cols.size) * sizeof(float));
  });
}

}  // namespace quantaria::ops
