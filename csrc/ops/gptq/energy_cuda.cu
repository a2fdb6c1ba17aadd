#include "core/error.h"
#include "numerics/bits.h"
#include "ops/copy/cast_value.cuh"
#include "ops/gptq/run_cuda.h"
#include "ops/gptq/tile_product.cuh"
#include "simt/simt.h"

// Weights on their way in, and what a run cost: sums in float64, in an order that the shape alone decides.
namespace quantaria::ops {
namespace {

constexpr int kThreads = kProductThreads;
static_assert(energy_tiles(kProductTile, kProductTile) == 1 && energy_tiles(kProductTile + 1, 1) == 2);

__device__ float element_of(const ConstMatrix& m, int64_t row, int64_t col) {
  return load_float(m.dtype, m.data, row * m.row_stride + col * m.col_stride);
}

struct LeastColumn {
  int32_t column[kThreads / 32];
};

/// Block (r, p): row r.
__global__ void __launch_bounds__(kThreads)
    load(GptqRun run, const __grid_constant__ PerProblem<ConstMatrix> a,
         const __grid_constant__ PerProblem<ConstMatrix> b, bool difference,
         const __grid_constant__ PerProblem<const float*> products) {
  auto& shared = simt::shared<LeastColumn>();
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t row = blockIdx.x;
  const int32_t* const order = run.order + blockIdx.y * run.in;
  const float* const diagonal = products.of[blockIdx.y];
  float* const to = run.values + (blockIdx.y * run.rows + row) * run.in;
  auto bad = static_cast<int32_t>(run.in);
  for (int64_t p = static_cast<int>(threadIdx.x); p < run.in; p += kThreads) {
    const int32_t column = simt::load(order + p);
    const float value = element_of(a.of[blockIdx.y], row, column);
    if (!numerics::is_finite(value) && column < bad) bad = column;
    const float less = difference ? element_of(b.of[blockIdx.y], row, column) : 0.0f;
    // Columns that no state reached are not told from others where only their part in an output counts.
    const bool dead = !difference && simt::load(diagonal + column * (run.in + 1)) == 0;
    simt::store(to + p, dead ? 0.0f : value - less);
  }
  if (difference) return;  // an output's NaN is told by its sum
  for (int apart = 16; apart > 0; apart /= 2) {
    const int32_t other = __shfl_xor_sync(~0u, bad, apart);
    bad = other < bad ? other : bad;
  }
  if (threadIdx.x % 32 == 0) shared.column[threadIdx.x / 32] = bad;
  __syncthreads();  // every warp's is there
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp)
    if (shared.column[warp] < bad) bad = shared.column[warp];
  simt::store(run.bad + blockIdx.y * run.rows + row, bad);
}

__global__ void __launch_bounds__(kThreads)
    copy_live(const GptqState* state, ConstMatrix weight, const float* products, float* to) {
  if (simt::load(&state->stopped)) return;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= weight.rows * weight.cols) return;
  const int64_t column = i % weight.cols;
  const bool dead = simt::load(products + column * (weight.cols + 1)) == 0;
  simt::store(to + i, dead ? 0.0f : element_of(weight, i / weight.cols, column));
}

struct EnergyShared {
  union {
    ProductSlabs slabs;
    double sum[kThreads];
  };
};

/// The sum over a block's threads, in a tree. Thread 0 gets it.
__device__ double sum_of_block(double* sums, double own) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // what lay here has been read
  sums[thread] = own;
  for (int apart = kThreads / 2; apart > 0; apart /= 2) {
    __syncthreads();  // the sums of the last level are there
    if (thread < apart) sums[thread] += sums[thread + apart];
  }
  return thread == 0 ? sums[0] : 0.0;
}

/// Block (t, p): the part of 64 rows and 64 columns. With H' strictly above the diagonal what H has, and half
/// of its diagonal, x^T H x is twice x times H' x.
__global__ void __launch_bounds__(kThreads) multiply_energy(GptqRun run) {
  auto& shared = simt::shared<EnergyShared>();
  TileProduct product(shared.slabs);
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t row_tiles = (run.rows + kProductTile - 1) / kProductTile;
  const int64_t row0 = blockIdx.x % row_tiles * kProductTile;
  const int64_t col0 = blockIdx.x / row_tiles * kProductTile;
  const float* const values = run.values + blockIdx.y * run.rows * run.in;
  const float* const hessian = run.hessian + blockIdx.y * run.in * run.in;
  const int64_t depth = col0 + kProductTile < run.in ? col0 + kProductTile : run.in;
  product.add<Along::k, Along::tile>(
      0, depth,
      [&](int i, int64_t k) {
        return row0 + i < run.rows ? simt::load(values + (row0 + i) * run.in + k) : 0.0f;
      },
      [&](int64_t k, int j) {
        const int64_t col = col0 + j;
        if (col >= run.in || k > col) return 0.0f;
        const float h = simt::load(hessian + k * run.in + col);
        return k == col ? 0.5f * h : h;
      });
  double sum = 0;
  product.for_each([&](int i, int j, float image) {
    if (row0 + i < run.rows && col0 + j < run.in)
      sum += static_cast<double>(image) *
             static_cast<double>(simt::load(values + (row0 + i) * run.in + col0 + j));
  });
  const double total = sum_of_block(shared.sum, sum);
  if (threadIdx.x == 0)
    simt::store(run.partial + blockIdx.y * energy_tiles(run.rows, run.in) + blockIdx.x, 2 * total);
}

/// The sum of a problem's `count` numbers. Thread 0 gets it.
__device__ double total_of(double* sums, const double* from, int64_t count) {
  double sum = 0;
  for (int64_t i = static_cast<int>(threadIdx.x); i < count; i += kThreads)
    sum += simt::load(from + blockIdx.y * count + i);
  return sum_of_block(sums, sum);
}

struct TotalShared {
  double sum[kThreads];
};

/// Block (0, p).
__global__ void __launch_bounds__(kThreads) total(GptqRun run, EnergyOf rows) {
  auto& shared = simt::shared<TotalShared>();
  GptqState* const state = run.state + blockIdx.y;
  if (simt::load(&state->stopped)) return;
  const double sum = total_of(shared.sum, run.partial, energy_tiles(run.rows, run.in));
  double* const to = rows == EnergyOf::weight   ? &state->energy
                     : rows == EnergyOf::beside ? &state->beside
                                                : &state->lost;
  if (threadIdx.x == 0) simt::store(to, sum);
}

struct ReportShared {
  double sum[kThreads];
  int32_t row[kThreads];
};

/// Block (0, p).
__global__ void __launch_bounds__(kThreads)
    report(GptqRun run, const __grid_constant__ PerProblem<ConstMatrix> weights) {
  auto& shared = simt::shared<ReportShared>();
  GptqState* const state = run.state + blockIdx.y;
  if (simt::load(&state->stopped)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const double errors = total_of(shared.sum, run.errors, run.rows);
  const double residuals = total_of(shared.sum, run.residuals, run.rows);
  const int32_t* const bad = run.bad + blockIdx.y * run.rows;
  auto row = static_cast<int32_t>(run.rows);
  for (int64_t i = thread; i < run.rows; i += kThreads)
    if (i < row && simt::load(bad + i) < run.in) row = static_cast<int32_t>(i);
  shared.row[thread] = row;
  __syncthreads();  // every thread's row is there
  if (thread != 0) return;
  for (int other = 1; other < kThreads; ++other)
    if (shared.row[other] < row) row = shared.row[other];
  simt::store(&state->errors, errors);
  simt::store(&state->residuals, residuals);
  if (row == run.rows) return;
  const int32_t column = simt::load(bad + row);
  simt::store(&state->bad_row, row);
  simt::store(&state->bad_place, column);
  simt::store(&state->bad_value, element_of(weights.of[blockIdx.y], row, column));
}

}  // namespace

void load_values(void* stream, const GptqRun& run, const PerProblem<ConstMatrix>& a,
                 const PerProblem<ConstMatrix>* b, const PerProblem<const float*>& products) {
  simt::launch(load, dim3(blocks_of(run.rows), static_cast<unsigned>(run.problems)), dim3(kThreads),
               sizeof(LeastColumn), static_cast<simt::Stream>(stream), run, a, b ? *b : a, b != nullptr,
               products);
}

void copy_live_columns(void* stream, const GptqRun& run, int64_t problem, const ConstMatrix& weight,
                       const float* products, float* to) {
  simt::launch(copy_live, dim3(blocks_of((run.rows * run.in + kThreads - 1) / kThreads)), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), run.state + problem, weight, products, to);
}

void add_energy(void* stream, const GptqRun& run) {
  simt::launch(multiply_energy,
               dim3(blocks_of(energy_tiles(run.rows, run.in)), static_cast<unsigned>(run.problems)),
               dim3(kThreads), sizeof(EnergyShared), static_cast<simt::Stream>(stream), run);
}

void close_energy(void* stream, const GptqRun& run, EnergyOf rows) {
  simt::launch(total, dim3(1, static_cast<unsigned>(run.problems)), dim3(kThreads), sizeof(TotalShared),
               static_cast<simt::Stream>(stream), run, rows);
}

void close_report(void* stream, const GptqRun& run, const PerProblem<ConstMatrix>& weights) {
  simt::launch(report, dim3(1, static_cast<unsigned>(run.problems)), dim3(kThreads), sizeof(ReportShared),
               static_cast<simt::Stream>(stream), run, weights);
}

}  // namespace quantaria::ops
