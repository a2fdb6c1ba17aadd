#include <algorithm>

#include "ops/gemm/gemm.h"
#include "ops/gptq/gptq.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {

void add_outer_products(ThreadPool& pool, const ConstMatrix& x, float* products) {
  const Matrix sum{reinterpret_cast<std::byte*>(products),
                   DType::float32,
                   x.cols,
                   x.cols,
                   std::max<int64_t>(1, x.cols),
                   1};
  // Products of two bfloat16 are exact either way.
  gemm(pool, transposed_view(x), x, sum,
       {.accumulate = true, .part = Part::upper, .bfloat16 = x.dtype == DType::bfloat16});
}

void hessian_of(ThreadPool& pool, const float* products, int64_t in, int64_t samples, float* hessian) {
  const double scale = samples > 0 ? 2.0 / static_cast<double>(samples) : 0.0;
  // Square tiles: the lower triangle is read along columns.
  constexpr int64_t kTile = 64;
  const int64_t tiles = (in + kTile - 1) / kTile;
  pool.parallel_for(tiles, [&](int64_t tile) {
    const int64_t end = std::min(in, (tile + 1) * kTile);
    for (int64_t first = 0; first < in; first += kTile)
      for (int64_t i = tile * kTile; i < end; ++i)
        for (int64_t j = first; j < std::min(in, first + kTile); ++j) {
          const float product = products[std::min(i, j) * in + std::max(i, j)];
          hessian[i * in + j] = samples > 0 ? static_cast<float>(scale * static_cast<double>(product)) : 0.0f;
        }
  });
}

}  // namespace quantaria::ops
