#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix.h"
#include "core/thread_pool.h"

namespace quantaria::ops {

/// The upper triangular R with A = R R^T, for a symmetric A [n, n] float32, row-major, of which the upper
/// triangle is read and replaced by R's. R is the Cholesky factor of A in reversed order, and R^-1 is the
/// upper triangular factor of A^-1 that GPTQ steps through: one factorisation (n^3 / 3) stands for a
/// factorisation, an inversion and another factorisation.
class ReversedCholesky {
 public:
  ReversedCholesky(ThreadPool& pool, float* a, int64_t n);

  /// False if A is not positive definite; its contents are then lost.
  bool factor() { return factor({0, n_}); }

 private:
  struct Range {
    int64_t first;
    int64_t size;
  };
  /// In two halves, so that nearly all work is in large products.
  bool factor(Range range);
  bool factor_triangle(Range range);
  /// A(rows, cols) times the inverse transpose of R(cols, cols).
  void solve(Range rows, Range cols);
  void solve_triangle(Range rows, Range cols);
  Matrix part(Range rows, Range cols) const;

  ThreadPool& pool_;
  float* a_;
  int64_t n_;
  std::vector<float> inverses_;  // of the triangles on the diagonal, [kBlockCols, kBlockCols] each
  std::vector<float> solved_;
};

}  // namespace quantaria::ops
