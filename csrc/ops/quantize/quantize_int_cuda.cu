#include "ops/bitpack/bitpack.h"
#include "ops/quantize/call_room.h"
#include "ops/quantize/int_codes.cuh"
#include "ops/quantize/int_search.cuh"

namespace quantaria::ops {
namespace {

/// Errors of every factor over each row of a weight that has one grid: [rows][kShrinkSteps].
__global__ void __launch_bounds__(kSearchThreads)
    row_errors(const __grid_constant__ Segments rows, const float* low, const float* high,
               const __grid_constant__ IntRule rule, float* errors) {
  const int half = static_cast<int>(threadIdx.x) % 32 / kSearchLanes;
  const int64_t stride = int64_t{gridDim.x} * (kSearchThreads / 32);
  const float least = simt::load(low);
  const float most = simt::load(high);
  const float unit = error_unit_of(least, most);
  for (int64_t row = int64_t{blockIdx.x} * (kSearchThreads / 32) + threadIdx.x / 32; row < rows.rows;
       row += stride) {
    const Segment segment{row, 0, rows.row_length, row};
    for (int k = half; k < kShrinkSteps; k += 2) {
      const float error = shrink_error(rows.walk, segment, rule, shrunk_grid(rule, k, least, most), unit);
      if (threadIdx.x % kSearchLanes == 0) simt::store(errors + row * kShrinkSteps + k, error);
    }
  }
}

Walk walk_of(const ConstMatrix& w) {
  Walk walk{};
  walk.w = w;
  return walk;
}

Walk columns_of(const ConstMatrix& w) {
  Walk walk = walk_of({w.data, w.dtype, w.cols, w.rows, w.col_stride, w.row_stride});
  walk.by_columns = true;
  return walk;
}

/// The runs that share a constant; of the whole weight, its rows.
Segments segments_of(const ConstMatrix& w, const IntScheme& scheme) {
  if (scheme.granularity == Granularity::column) return {columns_of(w), w.cols, w.rows, w.rows, 1};
  if (scheme.granularity != Granularity::group) return {walk_of(w), w.rows, w.cols, w.cols, 1};
  const int64_t groups = constants_shape(scheme, w.rows, w.cols).cols;
  return {walk_of(w), w.rows, w.cols, scheme.group_size, groups};
}

void fit_groups(simt::Stream stream, const Segments& segments, bool search, const FitInt& fit,
                const CallRoom& room) {
  if (!search) return launch_fit(stream, segments, fit, room.verdict);
  if (segments.count() == 0) return;
  const StoreRange range{room.floats(), room.floats() + segments.count()};
  launch_fit(stream, segments, range, room.verdict);
  simt::launch(search_segments<FitInt>, cuda::blocks_for(segments.count(), kSearchThreads / 32),
               dim3(kSearchThreads), 0, stream, segments, static_cast<const float*>(range.low),
               static_cast<const float*>(range.high), fit);
}

void fit_whole(simt::Stream stream, const Segments& rows, bool search, const FitInt& fit,
               const CallRoom& room) {
  float* const pieces = room.floats() + 2;
  if (!search) return launch_fit_whole(stream, rows.walk, fit, pieces, room.verdict);
  const StoreRange range{room.floats(), room.floats() + 1};
  launch_fit_whole(stream, rows.walk, range, pieces, room.verdict);
  float* const errors = pieces + whole_workspace(rows.rows, rows.row_length);
  if (rows.rows > 0)
    simt::launch(row_errors, cuda::blocks_for(rows.rows, kSearchThreads / 32), dim3(kSearchThreads), 0,
                 stream, rows, static_cast<const float*>(range.low), static_cast<const float*>(range.high),
                 fit.rule, errors);
  simt::launch(choose_shrink<FitInt>, dim3(1), dim3(96), sizeof(SearchShared), stream,
               static_cast<const float*>(errors), rows.rows, static_cast<const float*>(range.low),
               static_cast<const float*>(range.high), fit);
}

}  // namespace

int64_t quantize_int_workspace(const IntScheme& scheme, int64_t out, int64_t in) {
  int64_t floats = 0;
  if (scheme.granularity == Granularity::tensor) {
    floats = 2 + whole_workspace(out, in) + (scheme.mse_search ? out * kShrinkSteps : 0);
  } else if (scheme.mse_search) {
    const ConstantsShape constants = constants_shape(scheme, out, in);
    floats = 2 * constants.rows * constants.cols;
  }
  return CallRoom::bytes(floats * 4);
}

void quantize_int_cuda(const QuantizeCall& call, const IntScheme& scheme, const IntStored& to) {
  check_scheme(scheme);
  const auto stream = static_cast<simt::Stream>(call.stream);
  const CallRoom room(call.workspace);
  const ConstMatrix& w = call.w;
  const Segments segments = segments_of(w, scheme);
  const FitInt fit{int_rule_of(scheme), to.scales, to.zeros};
  const bool whole = scheme.granularity == Granularity::tensor;
  whole ? fit_whole(stream, segments, scheme.mse_search, fit, room)
        : fit_groups(stream, segments, scheme.mse_search, fit, room);
  launch_pack(stream, walk_of(w), bit_rows(to.packed, scheme.bits, w.rows, w.cols),
              encode_int(scheme, fit, w.rows, w.cols));
  relative_error_cuda(stream, w, coded_int(scheme, {to.packed, to.scales, to.zeros}, w.rows, w.cols),
                      room.errors, call.relative_error);
}

}  // namespace quantaria::ops
