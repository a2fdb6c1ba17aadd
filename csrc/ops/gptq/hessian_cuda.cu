#include <algorithm>

#include "core/error.h"
#include "ops/copy/cast_value.cuh"
#include "ops/gptq/gptq_cuda.h"
#include "ops/gptq/tile_product.cuh"
#include "simt/simt.h"

namespace quantaria::ops {
namespace {

// 128 x 128 of x^T x in a block of eight warps, each 64 x 32 of it; states in steps of 32, three of them in
// shared memory.
constexpr int kSide = 128;
constexpr int kStep = 32;
constexpr int kStages = 3;
constexpr int kThreads = 256;
constexpr int kVector = 8;  // elements that one cp.async moves
/// Steps of a run. Tensor cores cut off what a sum loses instead of rounding it: runs are added up by proper
/// additions.
constexpr int kRunSteps = 8;

/// States are rows. They are 16 bytes longer than what they hold: eight consecutive ones begin in different
/// banks for ldmatrix.
struct States {
  alignas(16) uint16_t element[kStep][kSide + kVector];
};

struct StateStages {
  States left[kStages];
  States right[kStages];
};

/// The states of all problems, one problem's rows after the other's: counts[p] of them, or all where there is
/// only one problem and counts is null.
struct StateRows {
  const std::byte* data;
  DType dtype;
  int64_t rows;
  int64_t in;
  int64_t row_stride;
  int64_t col_stride;
  const int32_t* counts;
};

struct RowRange {
  int64_t first;
  int64_t end;
};

/// Those of this block's problem. A count under 0, or rows that are not there, count as none.
__device__ RowRange rows_of_problem(const StateRows& x) {
  if (x.counts == nullptr) return {0, x.rows};
  int64_t first = 0;
  int64_t count = 0;
  for (int p = 0; p <= static_cast<int>(blockIdx.y); ++p) {
    first += count;
    count = simt::load(x.counts + p);
    if (count < 0) count = 0;
  }
  if (first > x.rows) first = x.rows;
  return {first, first + count < x.rows ? first + count : x.rows};
}

/// Begins to bring the columns from `col` on of the rows from `row` on, zeros where there are none. Vectors:
/// rows begin at multiples of 16 bytes and hold whole vectors.
template <bool Vectors>
__device__ __forceinline__ void fetch(States& to, const StateRows& x, int64_t row, int64_t end, int64_t col) {
  constexpr int kAcross = kSide / kVector;
  const auto* const from = reinterpret_cast<const uint16_t*>(x.data);
  for (int i = static_cast<int>(threadIdx.x); i < kStep * kAcross; i += kThreads) {
    const int r = i / kAcross;
    const int c = i % kAcross * kVector;
    const bool row_there = row + r < end;
    const uint16_t* const source = from + (row_there ? row + r : 0) * x.row_stride + col + c;
    uint16_t* const target = &to.element[r][c];
    if constexpr (Vectors) {
      const bool there = row_there && col + c < x.in;
      simt::cp_async<16>(target, there ? source : from, there);
    } else {
#pragma unroll 1  // unrolled, the addresses spill
      for (int e = 0; e < kVector; ++e) {
        const bool there = row_there && col + c + e < x.in;
        target[e] = there ? simt::load(source + e) : uint16_t{0};
      }
    }
  }
}

/// Block (t, p): tile t of the upper triangle of problem p.
template <class T, bool Vectors>
__global__ void __launch_bounds__(kThreads, 1) add_outer_products(StateRows x, float* products) {
  auto& stages = simt::shared<StateStages>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const UpperTile tile = upper_tile(blockIdx.x);
  const bool diagonal = tile.row == tile.column;
  const int64_t row0 = tile.row * kSide;
  const int64_t col0 = tile.column * kSide;
  const RowRange range = rows_of_problem(x);
  const int64_t steps = (range.end - range.first + kStep - 1) / kStep;
  if (steps <= 0) return;

  const auto begin_step = [&](int64_t step) {
    if (step < steps) {
      const int64_t row = range.first + step * kStep;
      fetch<Vectors>(stages.left[step % kStages], x, row, range.end, row0);
      if (!diagonal) fetch<Vectors>(stages.right[step % kStages], x, row, range.end, col0);
    }
    if constexpr (Vectors) simt::cp_async_commit();  // an empty group too: waits count them
  };

  float total[4][4][4] = {};
  float run[4][4][4] = {};
  const auto close_run = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total[i][j][e] += run[i][j][e];
          run[i][j][e] = 0;
        }
  };
  const int warp_row = warp / 4 * 64;
  const int warp_col = warp % 4 * 32;
  for (int step = 0; step < kStages - 1; ++step) begin_step(step);
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (Vectors) simt::cp_async_wait<kStages - 2>();
    __syncthreads();  // this step's states are there for every warp, and every warp has left those of the
                      // last step
    begin_step(step + kStages - 1);
    const auto& left = stages.left[step % kStages].element;
    const auto& right = diagonal ? left : stages.right[step % kStages].element;
#pragma unroll
    for (int kk = 0; kk < kStep; kk += 16) {
      uint32_t fb[2][4];  // of two neighbouring 8-column tiles each
#pragma unroll
      for (int j = 0; j < 2; ++j)
        simt::ldmatrix<4, true>(fb[j],
                                &right[kk + lane / 8 % 2 * 8 + lane % 8][warp_col + j * 16 + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t fa[4];
        simt::ldmatrix<4, true>(fa,
                                &left[kk + lane / 16 * 8 + lane % 8][warp_row + i * 16 + lane / 8 % 2 * 8]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
          simt::mma_m16n8k16<T>(run[i][j], fa, pair);
        }
      }
    }
    if (step % kRunSteps == kRunSteps - 1) close_run();
  }
  close_run();

  float* const to = products + blockIdx.y * x.in * x.in;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t row = row0 + warp_row + i * 16 + lane / 4 + e / 2 * 8;
        const int64_t col = col0 + warp_col + j * 8 + lane % 4 * 2 + e % 2;
        if (row > col || col >= x.in) continue;
        float* const place = to + row * x.in + col;
        simt::store(place, simt::load(place) + total[i][j][e]);
      }
}

/// The same for float32, which tensor cores would round, and for any strides.
__global__ void __launch_bounds__(kProductThreads) add_float32_outer_products(StateRows x, float* products) {
  TileProduct product(simt::shared<ProductSlabs>());
  const UpperTile tile = upper_tile(blockIdx.x);
  const int64_t row0 = tile.row * kProductTile;
  const int64_t col0 = tile.column * kProductTile;
  const RowRange range = rows_of_problem(x);
  if (range.end <= range.first) return;
  const auto value = [&](int64_t row, int64_t col) {
    return col < x.in ? load_float(x.dtype, x.data, row * x.row_stride + col * x.col_stride) : 0.0f;
  };
  product.add<Along::tile, Along::tile>(
      range.first, range.end, [&](int i, int64_t k) { return value(k, row0 + i); },
      [&](int64_t k, int j) { return value(k, col0 + j); });
  float* const to = products + blockIdx.y * x.in * x.in;
  product.for_each([&](int i, int j, float sum) {
    const int64_t row = row0 + i;
    const int64_t col = col0 + j;
    if (row > col || col >= x.in) return;
    float* const place = to + row * x.in + col;
    simt::store(place, simt::load(place) + sum);
  });
}

// 32 x 32 of a matrix in a block: the lower triangle is read along columns of the upper one.
constexpr int kMirror = 32;
constexpr int kMirrorThreads = 256;

__global__ void __launch_bounds__(kMirrorThreads)
    hessian_value(const float* products, int64_t in, double scale, float* hessian) {
  const int64_t tiles = (in + kMirror - 1) / kMirror;
  const int64_t row0 = blockIdx.x / tiles * kMirror;
  const int64_t col = blockIdx.x % tiles * kMirror + threadIdx.x % kMirror;
  for (int i = static_cast<int>(threadIdx.x) / kMirror; i < kMirror; i += kMirrorThreads / kMirror) {
    const int64_t row = row0 + i;
    if (row >= in || col >= in) continue;
    const float product = simt::load(products + (row < col ? row * in + col : col * in + row));
    simt::store(hessian + row * in + col,
                scale > 0 ? static_cast<float>(scale * static_cast<double>(product)) : 0.0f);
  }
}

__global__ void __launch_bounds__(kMirrorThreads)
    add_multiple(const float* from, float factor, int64_t count, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kMirrorThreads + threadIdx.x;
  if (i < count) simt::store(to + i, simt::load(to + i) + factor * simt::load(from + i));
}

template <class T>
void launch_tensor_cores(simt::Stream stream, const StateRows& x, int64_t problems, float* products) {
  const bool vectors =
      reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.in % kVector == 0 && x.row_stride % kVector == 0;
  const int64_t tiles = upper_tiles((x.in + kSide - 1) / kSide);
  simt::launch(vectors ? add_outer_products<T, true> : add_outer_products<T, false>,
               dim3(blocks_of(tiles), static_cast<unsigned>(problems)), dim3(kThreads), sizeof(StateStages),
               stream, x, products);
}

}  // namespace

void add_outer_products_cuda(void* opaque_stream, const ConstMatrix& x, const int32_t* counts,
                             int64_t problems, float* products) {
  constexpr int64_t kMostProblems = 65535;  // of a launch
  if (counts == nullptr && problems != 1) fail(ErrorCode::argument, "counts: missing");
  if (problems > kMostProblems) fail(ErrorCode::unsupported, "at most ", kMostProblems, " problems at once");
  if (x.rows == 0 || x.cols == 0 || problems == 0) return;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const StateRows rows{x.data, x.dtype, x.rows, x.cols, x.row_stride, x.col_stride, counts};
  const bool along = x.col_stride == 1 || x.cols == 1;
  if (x.dtype == DType::float16 && along)
    return launch_tensor_cores<simt::Half>(stream, rows, problems, products);
  if (x.dtype == DType::bfloat16 && along)
    return launch_tensor_cores<simt::Bfloat16>(stream, rows, problems, products);
  const int64_t tiles = upper_tiles((x.cols + kProductTile - 1) / kProductTile);
  simt::launch(add_float32_outer_products, dim3(blocks_of(tiles), static_cast<unsigned>(problems)),
               dim3(kProductThreads), sizeof(ProductSlabs), stream, rows, products);
}

void hessian_of_cuda(void* stream, const float* products, int64_t in, int64_t samples, float* hessian) {
  if (in == 0) return;
  const int64_t tiles = (in + kMirror - 1) / kMirror;
  simt::launch(hessian_value, dim3(blocks_of(tiles * tiles)), dim3(kMirrorThreads), 0,
               static_cast<simt::Stream>(stream), products, in,
               samples > 0 ? 2.0 / static_cast<double>(samples) : 0.0, hessian);
}

void add_scaled_cuda(void* stream, const float* from, float factor, int64_t count, float* to) {
  if (count == 0) return;
  simt::launch(add_multiple, dim3(blocks_of((count + kMirrorThreads - 1) / kMirrorThreads)),
               dim3(kMirrorThreads), 0, static_cast<simt::Stream>(stream), from, factor, count, to);
}

}  // namespace quantaria::ops
