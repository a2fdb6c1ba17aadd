#include "ops/scaling/scaling_cuda.h"

#include "core/error.h"
#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

__device__ float value_at(const ConstMatrix& m, int64_t row, int64_t col) {
  return load_float(m.dtype, m.data, row * m.row_stride + col * m.col_stride);
}

/// A thread for each column, rows in order: the sums' bits are the CPU's.
__global__ void __launch_bounds__(kThreads) add_magnitudes(ConstMatrix x, float* maxima, float* sums) {
  const int64_t col = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= x.cols) return;
  float most = simt::load(maxima + col);
  double sum = 0;
#pragma unroll 4
  for (int64_t row = 0; row < x.rows; ++row) {
    const float magnitude = fabsf(value_at(x, row, col));
    most = most < magnitude ? magnitude : most;
    sum += static_cast<double>(magnitude);
  }
  simt::store(maxima + col, most);
  simt::store(sums + col, simt::load(sums + col) + static_cast<float>(sum));
}

__global__ void __launch_bounds__(kThreads)
    scale(ConstMatrix w, const float* rows, const float* columns, float* to) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < w.rows * w.cols; i += stride) {
    const int64_t row = i / w.cols;
    const int64_t col = i % w.cols;
    float value = value_at(w, row, col);
    if (rows) value *= simt::load(rows + row);
    if (columns) value *= simt::load(columns + col);
    simt::store(to + i, value);
  }
}

/// A warp for each group of each row.
__global__ void __launch_bounds__(kThreads)
    clamp(ConstMatrix w, int64_t group, int64_t groups, const float* ratios, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; i < w.rows * groups;
       i += stride) {
    const int64_t row = i / groups;
    const int64_t first = i % groups * group;
    const int64_t end = w.cols - first < group ? w.cols : first + group;
    float most = 0;
    for (int64_t col = first + lane; col < end; col += 32) {
      const float magnitude = fabsf(value_at(w, row, col));
      most = most < magnitude ? magnitude : most;
    }
    for (int apart = 16; apart > 0; apart /= 2) {
      const float other = __shfl_xor_sync(~0u, most, apart);
      most = most < other ? other : most;
    }
    const float bound = simt::load(ratios + i) * most;
    for (int64_t col = first + lane; col < end; col += 32) {
      const float value = value_at(w, row, col);
      const float above = -bound < value ? value : -bound;
      simt::store(to + row * w.cols + col, above < bound ? above : bound);
    }
  }
}

__global__ void __launch_bounds__(kThreads) round_values(ConstMatrix x, float scale, float* to) {
  constexpr float kLow = -128;
  constexpr float kHigh = 127;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < x.rows * x.cols; i += stride) {
    const float code = nearbyintf(value_at(x, i / x.cols, i % x.cols) / scale);
    simt::store(to + i, (code < kLow ? kLow : code > kHigh ? kHigh : code) * scale);
  }
}

constexpr int kErrorRows = 4;  // of a block, for which an element of P is read once
constexpr int kErrorThreads = 128;

struct ErrorShared {
  double of_warp[kErrorThreads / 32][kErrorRows];
};

/// Some rows of one group: columns of P's block are shared out between threads, their terms added up in a
/// fixed order.
__global__ void __launch_bounds__(kErrorThreads, 2)
    add_errors(ConstMatrix w, ConstMatrix v, const float* products, int64_t group, int64_t groups,
               float* errors) {
  auto& shared = simt::shared<ErrorShared>();
  const int64_t row0 = blockIdx.x / groups * kErrorRows;
  const int64_t g = blockIdx.x % groups;
  const int64_t begin = g * group;
  const int64_t cols = w.cols - begin < group ? w.cols - begin : group;
  const auto lost = [&](int row, int64_t col) {
    return row0 + row < w.rows ? value_at(w, row0 + row, begin + col) - value_at(v, row0 + row, begin + col)
                               : 0.0f;
  };
  double sum[kErrorRows] = {};
  for (int64_t c = threadIdx.x; c < cols; c += kErrorThreads) {
    float image[kErrorRows] = {};
    for (int64_t i = 0; i < cols; ++i) {
      const float p = i < c ? simt::load(products + (begin + i) * w.cols + begin + c)
                            : simt::load(products + (begin + c) * w.cols + begin + i);
#pragma unroll
      for (int r = 0; r < kErrorRows; ++r) image[r] = fmaf(lost(r, i), p, image[r]);
    }
#pragma unroll
    for (int r = 0; r < kErrorRows; ++r)
      sum[r] += static_cast<double>(lost(r, c)) * static_cast<double>(image[r]);
  }
#pragma unroll
  for (int r = 0; r < kErrorRows; ++r) {
    for (int apart = 16; apart > 0; apart /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], apart);
    if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32][r] = sum[r];
  }
  __syncthreads();  // every warp's sums are there
  if (threadIdx.x >= kErrorRows || row0 + threadIdx.x >= w.rows) return;
  double total = 0;
  for (const auto& warp : shared.of_warp) total += warp[threadIdx.x];
  simt::store(errors + (row0 + threadIdx.x) * groups + g, static_cast<float>(total));
}

void check_values(const ConstMatrix& m, const char* name) {
  if (m.dtype != DType::float32 && m.dtype != DType::float16 && m.dtype != DType::bfloat16)
    fail(ErrorCode::dtype, name, ": ", name_of(m.dtype), " given, float32, float16 or bfloat16 expected");
}

simt::Stream as_stream(void* stream) { return static_cast<simt::Stream>(stream); }

}  // namespace

void column_magnitudes_cuda(void* stream, const ConstMatrix& x, float* maxima, float* sums) {
  check_values(x, "x");
  if (x.cols == 0) return;
  simt::launch(add_magnitudes, dim3(static_cast<unsigned>((x.cols + kThreads - 1) / kThreads)),
               dim3(kThreads), 0, as_stream(stream), x, maxima, sums);
}

void scale_matrix_cuda(void* stream, const ConstMatrix& w, const float* rows, const float* columns,
                       float* to) {
  check_values(w, "w");
  simt::launch(scale, cuda::blocks_for(w.rows * w.cols, kThreads), dim3(kThreads), 0, as_stream(stream), w,
               rows, columns, to);
}

void clamp_groups_cuda(void* stream, const ConstMatrix& w, int64_t group, const float* ratios, float* to) {
  check_values(w, "w");
  const int64_t groups = (w.cols + group - 1) / group;
  simt::launch(clamp, cuda::blocks_for(w.rows * groups, kThreads / 32), dim3(kThreads), 0, as_stream(stream),
               w, group, groups, ratios, to);
}

void round_to_scale_cuda(void* stream, const ConstMatrix& x, float scale, float* to) {
  check_values(x, "x");
  simt::launch(round_values, cuda::blocks_for(x.rows * x.cols, kThreads), dim3(kThreads), 0,
               as_stream(stream), x, scale, to);
}

void group_errors_cuda(void* stream, const ConstMatrix& w, const ConstMatrix& v, const float* products,
                       int64_t group, float* errors) {
  check_values(w, "w");
  check_values(v, "v");
  const int64_t groups = (w.cols + group - 1) / group;
  const int64_t blocks = (w.rows + kErrorRows - 1) / kErrorRows * groups;
  if (blocks == 0) return;
  if (blocks > 0x7fffffff)
    fail(ErrorCode::unsupported, "groups of rows: ", blocks, ", at most 2^31 - 1 expected");
  simt::launch(add_errors, dim3(static_cast<unsigned>(blocks)), dim3(kErrorThreads), sizeof(ErrorShared),
               as_stream(stream), w, v, products, group, groups, errors);
}

}  // namespace quantaria::ops
