#include "ops/dequant_matmul/int8_rows.cuh"

#include <algorithm>

#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

/// What a group holds that is not finite.
struct NotFinite {
  int count;
  int place;  // of the last one, within the group
};

__device__ uint32_t magnitude_of(float value) { return numerics::bits_of(value) & ~numerics::kSignBit; }

/// A warp for each group of each row.
__global__ void __launch_bounds__(kThreads)
    quantize_groups(ConstMatrix x, const __grid_constant__ Int8Rows to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / 32);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; i < to.rows * to.groups;
       i += stride) {
    const int64_t row = i / to.groups;
    const int64_t group = i % to.groups;
    const int64_t first = group * to.group;
    const auto size = static_cast<int>(to.cols - first < to.group ? to.cols - first : to.group);
    const auto padded = static_cast<int>(to.runs_per_group * kInt8Run);
    const auto place = [&](int j) { return to.in_turns ? place_in_turns(j) : j; };
    const auto at = [&](int j) {
      return load_float(x.dtype, x.data, row * x.row_stride + (first + j) * x.col_stride);
    };
    uint32_t most = 0;
    NotFinite odd{0, -1};
    for (int j = lane; j < size; j += 32) {
      const uint32_t magnitude = magnitude_of(at(j));
      most = magnitude > most ? magnitude : most;
      if (magnitude < numerics::kInfinityBits) continue;
      ++odd.count;
      odd.place = j;
    }
    for (int apart = 16; apart > 0; apart /= 2) {
      const uint32_t other = __shfl_xor_sync(~0u, most, apart);
      most = other > most ? other : most;
    }
    int8_t* const codes = to.codes + row * to.row_bytes + group * padded;
    float scale = numerics::float_of(most) / 127.0f;
    int32_t sum = 0;
    if (most >= numerics::kInfinityBits) {
      // Beside a single infinity all else is 0; NaN or several infinities make the scale NaN.
      for (int apart = 16; apart > 0; apart /= 2) {
        odd.count += __shfl_xor_sync(~0u, odd.count, apart);
        const int other = __shfl_xor_sync(~0u, odd.place, apart);
        odd.place = other > odd.place ? other : odd.place;
      }
      const bool single = odd.count == 1 && most == numerics::kInfinityBits;
      const int code = single ? (at(odd.place) > 0 ? 127 : -127) : 0;
      scale = single ? numerics::float_of(numerics::kInfinityBits) : numerics::kQuietNaN;
      for (int j = lane; j < padded; j += 32)
        simt::store(codes + place(j), static_cast<int8_t>(j == odd.place ? code : 0));
      sum = code;
    } else {
      const float largest = numerics::float_of(most);
      // 127 / largest of a denormal would be infinite.
      const float boost = largest < 0x1p-60f ? 0x1p64f : 1.0f;
      const float factor = largest > 0 ? 127.0f / (largest * boost) : 0.0f;
      for (int j = lane; j < padded; j += 32) {
        int32_t code = 0;
        if (j < size)
          code = static_cast<int32_t>(numerics::bits_of(at(j) * boost * factor + numerics::kRoundingMagic) -
                                      numerics::bits_of(numerics::kRoundingMagic));
        simt::store(codes + place(j), static_cast<int8_t>(code));
        sum += code;
      }
      for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
    }
    if (lane == 0) {
      simt::store(to.scales + group * to.rows + row, scale);
      simt::store(to.sums + group * to.rows + row, sum);
    }
  }
}

constexpr int64_t kAlignment = 16;
constexpr int64_t round_up(int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Int8Rows int8_rows_in(std::byte* workspace, int64_t rows, const CodedMatrix& weight) {
  Int8Rows to{};
  to.rows = rows;
  to.cols = weight.in;
  to.group = std::clamp<int64_t>(weight.in, 1, weight.group);
  to.groups = (weight.in + to.group - 1) / to.group;
  to.runs_per_group = (to.group + kInt8Run - 1) / kInt8Run;
  to.row_bytes = to.groups * to.runs_per_group * kInt8Run;
  to.in_turns = columns_in_turns(weight.bits);
  to.scale_divisor = 1;
  to.codes = reinterpret_cast<int8_t*>(workspace);
  to.scales = reinterpret_cast<float*>(workspace + round_up(rows * to.row_bytes));
  to.sums = reinterpret_cast<int32_t*>(to.scales + rows * to.groups);
  return to;
}

int64_t int8_rows_bytes(int64_t rows, const CodedMatrix& weight) {
  const Int8Rows to = int8_rows_in(nullptr, rows, weight);
  return round_up(round_up(rows * to.row_bytes) + 2 * rows * to.groups * 4);
}

void quantize_int8_rows(simt::Stream stream, const ConstMatrix& x, const Int8Rows& to) {
  const int64_t groups = to.rows * to.groups;
  if (groups == 0) return;
  simt::launch(quantize_groups, cuda::blocks_for(groups, kThreads / 32), dim3(kThreads), 0, stream, x, to);
}

void int8_matmul_cuda(void* opaque_stream, const ConstMatrix& x, const DeviceWeight& weight,
                      const ConstMatrix* bias, const Matrix& y, std::byte* workspace) {
  if (y.rows == 0 || y.cols == 0) return;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const Int8Rows rows = int8_rows_in(workspace, y.rows, weight.matrix);
  quantize_int8_rows(stream, x, rows);
  multiply_int8_rows(stream, rows, nullptr, weight, bias, y);
}

int64_t int8_matmul_workspace(int64_t rows, const CodedMatrix& weight) {
  return int8_rows_bytes(rows, weight);
}

}  // namespace quantaria::ops
