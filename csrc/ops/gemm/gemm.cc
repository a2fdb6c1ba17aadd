#include "ops/gemm/gemm.h"

#include <algorithm>

#include "ops/gemm/dense_factor.h"
#include "ops/gemm/pack.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

// Depth that is packed and summed at a time: packed rows stay in the caches, and a sum's rounding error grows
// with this length and the number of parts rather than with the whole depth.
constexpr int64_t kDepth = 4096;

void put(const Piece& piece, const Matrix& c, float alpha, bool accumulate) {
  for (int64_t r = 0; r < piece.rows; ++r) {
    const float* const from = piece.c[0] + r * piece.stride;
    float* const to = reinterpret_cast<float*>(c.data) + (piece.row + r) * c.row_stride + piece.column;
    pack_kernels().put_row(from, piece.columns, alpha, accumulate, to);
  }
}

}  // namespace

void gemm(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix& b, const Matrix& c,
          const GemmOptions& options) {
  const int64_t parts = std::max<int64_t>(1, (a.cols + kDepth - 1) / kDepth);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * kDepth;
    const int64_t depth = std::min(kDepth, a.cols - first);
    const DenseFactor factor(part_of(b, first, depth, 0, b.cols), options.bfloat16);
    Product product;
    product.rows = {part_of(a, 0, a.rows, first, depth), nullptr, a.rows};
    product.factors[0] = &factor;
    product.upper = options.part == Part::upper;
    product.store = [&](const Piece& piece) { put(piece, c, options.alpha, options.accumulate || part > 0); };
    multiply_all(pool, {product});
  }
}

}  // namespace quantaria::ops
