#pragma once

#include "ops/scaling/scaling.h"

/// The functions of scaling.h in device memory, the same bits but for group_errors, whose products are summed
/// in another order: float32 products of the differences with P, in the order of columns, then float64.
/// `stream` is a simt::Stream.
namespace quantaria::ops {

void column_magnitudes_cuda(void* stream, const ConstMatrix& x, float* maxima, float* sums);
void scale_matrix_cuda(void* stream, const ConstMatrix& w, const float* rows, const float* columns,
                       float* to);
void clamp_groups_cuda(void* stream, const ConstMatrix& w, int64_t group, const float* ratios, float* to);
void round_to_scale_cuda(void* stream, const ConstMatrix& x, float scale, float* to);
void group_errors_cuda(void* stream, const ConstMatrix& w, const ConstMatrix& v, const float* products,
                       int64_t group, float* errors);

struct ScalingLaunchers {
  decltype(&column_magnitudes_cuda) column_magnitudes;
  decltype(&scale_matrix_cuda) scale_matrix;
  decltype(&clamp_groups_cuda) clamp_groups;
  decltype(&round_to_scale_cuda) round_to_scale;
  decltype(&group_errors_cuda) group_errors;
};
inline constexpr ScalingLaunchers kScalingLaunchers{
    column_magnitudes_cuda, scale_matrix_cuda, clamp_groups_cuda, round_to_scale_cuda, group_errors_cuda};

}  // namespace quantaria::ops
