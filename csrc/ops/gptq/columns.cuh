#pragma once

#include "core/error.h"
#include "ops/gptq/run_cuda.h"
#include "ops/gptq/tile_product.cuh"
#include "ops/quantize/element.cuh"
#include "simt/simt.h"

/// The columns of a block, one after the other, and the blocks one after the other. A `Rule` is a scheme as
/// kernels take it (gptq_cuda.cu):
///   int64_t fitted_group()                    columns of a group that is fitted when it is reached, else 0
///   int64_t grid_of(position, column)         the grid of the column that is quantized at a position
///   Grid load(problem, row, grid)             one that is there already
///   void store(problem, row, grid, Grid)      for one that was fitted
///   Grid fit(problem, row, n, value)          by a whole warp, of n values value(i)
///   Rounded round(Grid, w)
namespace quantaria::ops {

/// What rounds a row's weights in one group; what the numbers mean is the scheme's own.
struct Grid {
  float first;
  float second;
};

// Four warps of eight rows each. A row is spread over its warp, four columns a lane, in registers.
constexpr int kColumnThreads = 128;
constexpr int kColumnWarps = kColumnThreads / 32;
constexpr int kWarpRows = 8;
constexpr int kBlockRows = kColumnWarps * kWarpRows;

/// Four more a row put eight rows at one column into different banks.
struct RowTile {
  alignas(16) float value[kBlockRows][kGptqBlock + 4];
};

struct ColumnsShared {
  alignas(16) float upper[kUpperFloats];
  RowTile now;       // what the columns before the block add; then weights as they stand, to fit grids to
  RowTile residual;  // the weights as they came; column by column less what they became
  alignas(16) float at_hand[kColumnWarps][kWarpRows];  // the column that is quantized
  alignas(16) float error[kColumnWarps][kWarpRows];    // and what it spreads
  int32_t column[kGptqBlock];
  uint8_t codes[kBlockRows][kGptqBlock];
};

__device__ __forceinline__ void bring_block(ColumnsShared& shared, const GptqRun& run, const BlockCut& cut,
                                            int64_t index, int64_t splits, int64_t row0) {
  const int thread = static_cast<int>(threadIdx.x);
  const BlockRange block = cut.block(index);
  const float* const upper = run.upper + (blockIdx.y * cut.blocks() + index) * kUpperFloats;
  for (int i = thread * 4; i < kUpperFloats; i += kColumnThreads * 4)
    simt::cp_async<16>(shared.upper + i, upper + i);
  simt::cp_async_commit();
  const int32_t* const order = run.order + blockIdx.y * run.in + block.first;
  shared.column[thread] = thread < block.cols ? simt::load(order + thread) : 0;
  for (int r = 0; r < kBlockRows; ++r) {
    const bool there = row0 + r < run.rows && thread < block.cols;
    const int64_t row = blockIdx.y * run.rows + row0 + r;
    shared.residual.value[r][thread] =
        there ? simt::load(run.values + row * run.in + block.first + thread) : 0.0f;
    if (block.first == 0) continue;
    float sum = 0;
    for (int64_t split = 0; there && split < splits; ++split)
      sum += simt::load(run.product + ((blockIdx.y * splits + split) * run.rows + row0 + r) * kGptqBlock +
                        thread);
    shared.now.value[r][thread] = sum;
  }
  simt::cp_async_wait<0>();
  __syncthreads();  // the triangle's inverse and all rows are there
}

/// Block (rows, p): quantizes block `index` of the columns.
template <class Rule>
__global__ void __launch_bounds__(kColumnThreads)
    quantize_columns(const __grid_constant__ GptqRun run, BlockCut cut, int64_t index, int64_t splits,
                     const __grid_constant__ Rule rule) {
  auto& shared = simt::shared<ColumnsShared>();
  const int problem = static_cast<int>(blockIdx.y);
  if (simt::load(&run.state[problem].stopped)) return;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const BlockRange block = cut.block(index);
  const auto cols = static_cast<int>(block.cols);
  const int64_t row0 = int64_t{blockIdx.x} * kBlockRows;
  bring_block(shared, run, cut, index, splits, row0);
  auto* const now = shared.now.value + warp * kWarpRows;
  auto* const residual = shared.residual.value + warp * kWarpRows;
  const auto upper = [&](int row) {  // its part of this lane's columns; not those under the diagonal
    return simt::load_shared<float4>(shared.upper + upper_place(row, 4 * lane));
  };

  float w[kWarpRows][4] = {};
  if (block.first > 0) {
    for (int k = 0; k < cols; ++k) {
      if (lane < k / 4) continue;
      const float4 u = upper(k);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const float x = now[r][k];
        w[r][0] = fmaf(x, u.x, w[r][0]);
        w[r][1] = fmaf(x, u.y, w[r][1]);
        w[r][2] = fmaf(x, u.z, w[r][2]);
        w[r][3] = fmaf(x, u.w, w[r][3]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r)
#pragma unroll
    for (int e = 0; e < 4; ++e) w[r][e] += residual[r][4 * lane + e];

  // From here on a row's rounding is done by one lane.
  const int own = lane % kWarpRows;
  const int64_t own_row = row0 + warp * kWarpRows + own;
  const bool own_there = own_row < run.rows;
  const int64_t group = cut.long_groups() ? 0 : rule.fitted_group();
  int64_t known = -1;
  Grid grid{1, 0};
  float errors = 0;
  float residuals = 0;
  for (int i = 0; i < cols; ++i) {
    if (group > 0 && i % group == 0) {
      __syncwarp();  // nobody reads any more what lies there
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) now[r][4 * lane + e] = w[r][e];
      __syncwarp();  // the weights as they stand are there
      const int64_t size = cols - i < group ? cols - i : group;
#pragma unroll 1
      for (int r = 0; r < kWarpRows; ++r) {
        const int64_t row = row0 + warp * kWarpRows + r;
        if (row >= run.rows) break;
        const Grid fitted = rule.fit(problem, row, size, [&](int64_t j) { return now[r][i + j]; });
        if (lane == r) rule.store(problem, row, rule.grid_of(block.first + i, shared.column[i]), fitted);
        if (own == r) grid = fitted;
      }
    } else if (group == 0) {
      const int64_t at = rule.grid_of(block.first + i, shared.column[i]);
      if (at != known && own_there) grid = rule.load(problem, own_row, at);
      known = at;
    }
    if (lane == i / 4) {
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r)
        shared.at_hand[warp][r] = i % 4 == 0   ? w[r][0]
                                  : i % 4 == 1 ? w[r][1]
                                  : i % 4 == 2 ? w[r][2]
                                               : w[r][3];
    }
    __syncwarp();  // the column is there
    if (lane < kWarpRows) {
      const float value = shared.at_hand[warp][own];
      const Rounded rounded = rule.round(grid, value);
      const float lost = residual[own][i] - rounded.kept;
      const float error = (rounded.kept - value) / shared.upper[upper_place(i, i)];
      residual[own][i] = lost;
      shared.error[warp][own] = error;
      shared.codes[warp * kWarpRows + own][i] = rounded.code;
      errors = fmaf(error, error, errors);
      residuals = fmaf(lost, lost, residuals);
    }
    __syncwarp();  // its errors are there, and the column has been read
    if (lane < i / 4) continue;
    const float4 u = upper(i);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const float spread = shared.error[warp][r];
      w[r][0] = fmaf(spread, u.x, w[r][0]);
      w[r][1] = fmaf(spread, u.y, w[r][1]);
      w[r][2] = fmaf(spread, u.z, w[r][2]);
      w[r][3] = fmaf(spread, u.w, w[r][3]);
    }
  }

  // Residuals and codes were written before the last column's second barrier.
  if (lane < kWarpRows && own_there) {
    const int64_t at = problem * run.rows + own_row;
    const bool begins = index == 0;
    const double earlier_errors = begins ? 0.0 : simt::load(run.errors + at);
    const double earlier_residuals = begins ? 0.0 : simt::load(run.residuals + at);
    simt::store(run.errors + at, earlier_errors + static_cast<double>(errors));
    simt::store(run.residuals + at, earlier_residuals + static_cast<double>(residuals));
  }
  for (int r = 0; r < kWarpRows; ++r) {
    const int64_t row = row0 + warp * kWarpRows + r;
    if (row >= run.rows) break;
    const int64_t to = (problem * run.rows + row) * run.in;
    for (int i = lane; i < cols; i += 32) {
      simt::store(run.values + to + block.first + i, residual[r][i]);
      simt::store(run.codes + to + shared.column[i], shared.codes[warp * kWarpRows + r][i]);
    }
  }
}

constexpr int kFitThreads = 256;

/// Block (rows, p): a warp fits the grid of one row to the columns from `first` on, with the errors of those
/// before them made up for.
template <class Rule>
__global__ void __launch_bounds__(kFitThreads)
    fit_group_of_blocks(const __grid_constant__ GptqRun run, int64_t first, int64_t size,
                        const __grid_constant__ Rule rule) {
  const int problem = static_cast<int>(blockIdx.y);
  if (simt::load(&run.state[problem].stopped)) return;
  const int64_t row = int64_t{blockIdx.x} * (kFitThreads / 32) + threadIdx.x / 32;
  if (row >= run.rows) return;
  const int64_t at = (problem * run.rows + row) * run.in + first;
  const Grid fitted = rule.fit(problem, row, size, [&](int64_t i) {
    return simt::load(run.values + at + i) + simt::load(run.solved + at + i);
  });
  const int32_t column = simt::load(run.order + problem * run.in + first);
  if (threadIdx.x % 32 == 0) rule.store(problem, row, rule.grid_of(first, column), fitted);
}

/// All columns. With D the residuals W - Q of the columns before a block, R the factor and U the inverse of
/// the block's triangle of it, W + (D R) U is the block with their errors made up for. A group of several
/// blocks is fitted to all its columns as they stand when its first one is reached: W + Y with Y R(group,
/// group) = D R(before, group), solved block by block.
template <class Rule>
void quantize_all_columns(void* opaque_stream, const GptqRun& run, const BlockCut& cut, const Rule& rule) {
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const auto problems = static_cast<unsigned>(run.problems);
  const int64_t splits = product_splits(run.rows);
  for (int64_t index = 0; index < cut.blocks(); ++index) {
    const BlockRange block = cut.block(index);
    if (cut.long_groups() && block.first % cut.group == 0) {
      const int64_t left = run.in - block.first;
      const int64_t size = left < cut.group ? left : cut.group;
      for (int64_t later = index; later < cut.blocks() && cut.block(later).first < block.first + size;
           ++later) {
        multiply_factor(stream, run, cut.block(later), block.first);
        apply_inverse(stream, run, cut, later);
      }
      simt::launch(fit_group_of_blocks<Rule>,
                   dim3(blocks_of((run.rows + kFitThreads / 32 - 1) / (kFitThreads / 32)), problems),
                   dim3(kFitThreads), 0, stream, run, block.first, size, rule);
    }
    if (block.first > 0) multiply_factor(stream, run, block, block.first);
    simt::launch(quantize_columns<Rule>, dim3(blocks_of((run.rows + kBlockRows - 1) / kBlockRows), problems),
                 dim3(kColumnThreads), sizeof(ColumnsShared), stream, run, cut, index, splits, rule);
  }
}

}  // namespace quantaria::ops
