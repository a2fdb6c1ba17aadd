#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// Plain loops without branches: the compiler vectorises them over the groups.

template <class Rounding>
void fit_symmetric(const GridRule& rule, const float* absmax, int64_t n, float* scales) {
  for (int64_t i = 0; i < n; ++i) scales[i] = symmetric_scale(rule, absmax[i], Rounding{});
}

template <class Rounding>
void fit_affine(const GridRule& rule, const float* low, const float* high, int64_t n, float* scales,
                float* zeros) {
  for (int64_t i = 0; i < n; ++i) {
    const AffineGrid grid = affine_grid(rule, low[i], high[i], Rounding{});
    scales[i] = grid.scale;
    zeros[i] = grid.zero;
  }
}

}  // namespace

extern const GridKernels grid_kernels;
const GridKernels grid_kernels = {
    {fit_symmetric<ScaleToFloat>, fit_symmetric<ScaleToHalf>, fit_symmetric<ScaleToBfloat16>},
    {fit_affine<ScaleToFloat>, fit_affine<ScaleToHalf>, fit_affine<ScaleToBfloat16>},
};

}  // namespace quantaria::ops::QUANTARIA_ISA
