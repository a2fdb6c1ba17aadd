#include "core/error.h"
#include "numerics/bits.h"
#include "ops/gptq/run_cuda.h"
#include "ops/gptq/tile_product.cuh"
#include "simt/simt.h"

// The Cholesky factor in reversed order, by right-looking blocks of 64 columns from the last to the first:
// triangle, panel above it, products of the panel with itself. Three launches a block for all problems.
namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = kProductTile;

struct Reduction {
  double sum[kThreads];
  int32_t least[kThreads];
  int32_t count[kThreads];
};

/// Block (0, p).
__global__ void __launch_bounds__(kThreads)
    measure(GptqRun run, const __grid_constant__ PerProblem<const float*> products) {
  auto& shared = simt::shared<Reduction>();
  const int thread = static_cast<int>(threadIdx.x);
  const float* const from = products.of[blockIdx.y];
  double sum = 0;
  auto least = static_cast<int32_t>(run.in);
  int32_t dead = 0;
  for (int64_t i = thread; i < run.in; i += kThreads) {
    const float value = simt::load(from + i * run.in + i);
    if (!numerics::is_finite(value) && i < least) least = static_cast<int32_t>(i);
    sum += static_cast<double>(value);
    dead += value == 0;
  }
  shared.sum[thread] = sum;
  shared.least[thread] = least;
  shared.count[thread] = dead;
  for (int apart = kThreads / 2; apart > 0; apart /= 2) {
    __syncthreads();  // the sums of the last level are there
    if (thread >= apart) continue;
    shared.sum[thread] += shared.sum[thread + apart];
    shared.count[thread] += shared.count[thread + apart];
    if (shared.least[thread + apart] < shared.least[thread])
      shared.least[thread] = shared.least[thread + apart];
  }
  if (thread != 0) return;
  GptqState state{};
  const bool bad = shared.least[0] < run.in;
  state.stopped = bad;
  state.bad_column = bad ? shared.least[0] : -1;
  state.bad_row = -1;
  if (bad) state.bad_value = simt::load(from + int64_t{shared.least[0]} * (run.in + 1));
  state.dead_columns = shared.count[0];
  state.mean = shared.count[0] < run.in ? shared.sum[0] / static_cast<double>(run.in - shared.count[0]) : 1.0;
  simt::store(run.state + blockIdx.y, state);
}

/// The largest diagonal element of a column's group.
__global__ void __launch_bounds__(kThreads)
    measure_groups(GptqRun run, const __grid_constant__ PerProblem<const float*> products, int64_t group) {
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= run.in) return;
  const int64_t first = column / group * group;
  float largest = 0;
  for (int64_t i = first; i < (first + group < run.in ? first + group : run.in); ++i) {
    const float value = simt::load(products.of[blockIdx.y] + i * (run.in + 1));
    largest = value > largest ? value : largest;
  }
  simt::store(run.largest + blockIdx.y * run.in + column, largest);
}

struct Keys {
  float own[kThreads];
  float largest[kThreads];
};

/// A column's place is the number of those before it: of its group, with a larger diagonal, or an equal one
/// and a lower index; of others, whose largest is larger, or equal and of a lower group, and all before a
/// short last group.
__global__ void __launch_bounds__(kThreads)
    rank_columns(GptqRun run, const __grid_constant__ PerProblem<const float*> products, bool by_diagonal,
                 int64_t group) {
  auto& shared = simt::shared<Keys>();
  if (simt::load(&run.state[blockIdx.y].stopped)) return;  // NaN has no place
  const int thread = static_cast<int>(threadIdx.x);
  const float* const from = products.of[blockIdx.y];
  const float* const groups = run.largest + blockIdx.y * run.in;
  const int64_t column = int64_t{blockIdx.x} * kThreads + thread;
  const auto diagonal = [&](int64_t i) { return i < run.in ? simt::load(from + i * (run.in + 1)) : 0.0f; };
  const auto largest = [&](int64_t i) { return i < run.in ? simt::load(groups + i) : 0.0f; };
  const int64_t begins = column / group * group;
  const int64_t ends = begins + group;
  const bool in_short_group = ends > run.in;
  const int64_t short_group = run.in - run.in % group;
  const float own = diagonal(column);
  const float own_largest = largest(column);
  int64_t place = by_diagonal ? 0 : column;
  for (int64_t first = 0; by_diagonal && first < run.in; first += kThreads) {
    __syncthreads();  // the keys of the last round have been read
    shared.own[thread] = diagonal(first + thread);
    shared.largest[thread] = largest(first + thread);
    __syncthreads();  // this round's are there
    const int64_t count = run.in - first < kThreads ? run.in - first : kThreads;
    for (int i = 0; i < count; ++i) {
      const int64_t other = first + i;
      const bool same_group = other >= begins && other < ends;
      const float mine = same_group ? own : own_largest;
      const float others = same_group ? shared.own[i] : shared.largest[i];
      const bool before = others > mine || (others == mine && other < column);
      place += same_group ? before : in_short_group || (before && other < short_group);
    }
  }
  if (column < run.in) simt::store(run.order + blockIdx.y * run.in + place, static_cast<int32_t>(column));
}

__global__ void __launch_bounds__(kThreads)
    gather(GptqRun run, const __grid_constant__ PerProblem<const float*> products) {
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const float* const from = products.of[blockIdx.y];
  const int32_t* const order = run.order + blockIdx.y * run.in;
  const int64_t across = (run.in + kThreads - 1) / kThreads;
  const int64_t i = blockIdx.x / across;
  const int64_t j = blockIdx.x % across * kThreads + threadIdx.x;
  if (j < i || j >= run.in) return;
  const int64_t row = simt::load(order + i);
  const int64_t col = simt::load(order + j);
  const float product = simt::load(from + (row < col ? row * run.in + col : col * run.in + row));
  const double scale = 1 / simt::load(&run.state[blockIdx.y].mean);
  simt::store(run.hessian + (blockIdx.y * run.in + i) * run.in + j,
              static_cast<float>(scale * static_cast<double>(product)));
}

__global__ void __launch_bounds__(kThreads)
    damp(GptqRun run, const __grid_constant__ PerProblem<const float*> products,
         const __grid_constant__ PerProblem<double> damping) {
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= run.in) return;
  const int64_t column = simt::load(run.order + blockIdx.y * run.in + i);
  const bool dead = simt::load(products.of[blockIdx.y] + column * (run.in + 1)) == 0;
  float* const diagonal = run.hessian + blockIdx.y * run.in * run.in + i * (run.in + 1);
  const double value = dead ? 1.0 : static_cast<double>(simt::load(diagonal));
  simt::store(diagonal, static_cast<float>(value + damping.of[blockIdx.y]));
}

/// A triangle is small: in float64 its errors are nothing beside those of the float32 products around it.
struct Triangle {
  double r[kBlock][kBlock + 1];
  double u[kBlock][kBlock + 1];
  double root[kBlock];
};

/// Block (0, p): the triangle of columns [first, first + size), and its inverse.
__global__ void __launch_bounds__(kThreads) factor_triangle(GptqRun run, int64_t first, int size) {
  auto& shared = simt::shared<Triangle>();
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int thread = static_cast<int>(threadIdx.x);
  float* const corner = run.hessian + blockIdx.y * run.in * run.in + first * (run.in + 1);
  for (int e = thread; e < kBlock * kBlock; e += kThreads) {
    const int i = e / kBlock;
    const int j = e % kBlock;
    const bool there = i <= j && j < size;
    shared.r[i][j] = there ? static_cast<double>(simt::load(corner + i * run.in + j)) : i == j ? 1.0 : 0.0;
  }
  __syncthreads();  // the triangle is there
  const int row = thread % kBlock;
  for (int j = size - 1; j >= 0; --j) {
    const double pivot = shared.r[j][j];
    if (!(pivot > 0) || pivot > 1e300) {  // NaN too; the same for all threads
      if (thread == 0) simt::store(&run.state[blockIdx.y].stopped, int32_t{1});
      return;
    }
    const double scaled = shared.r[row][j] / pivot;
    for (int k = row + thread / kBlock; k < j; k += kThreads / kBlock)
      shared.r[row][k] -= scaled * shared.r[k][j];
    __syncthreads();  // column j - 1 is there
  }
  if (thread < kBlock) shared.root[thread] = sqrt(shared.r[thread][thread]);
  __syncthreads();  // the roots are there, and the pivots have been read
  for (int e = thread; e < kBlock * kBlock; e += kThreads) {
    const int i = e / kBlock;
    const int j = e % kBlock;
    if (i < j) shared.r[i][j] /= shared.root[j];
  }
  __syncthreads();  // the factor is there, its diagonal in `root`

  // Four lanes a column of the inverse, from the diagonal upwards: each sums over every fourth element, which
  // are those that it wrote itself.
  const int col = thread / 4;
  const int part = thread % 4;
  if (part == col % 4) shared.u[col][col] = 1 / shared.root[col];
  for (int i = kBlock - 2; i >= 0; --i) {
    double sum = 0;
    for (int k = i + 1 + ((part - i - 1) & 3); k <= col; k += 4) sum += shared.r[i][k] * shared.u[k][col];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (part == i % 4 && i < col) shared.u[i][col] = -sum / shared.root[i];
  }
  __syncthreads();  // the inverse is there
  float* const inverse = run.inverse + int64_t{blockIdx.y} * kBlock * kBlock;
  for (int e = thread; e < kBlock * kBlock; e += kThreads) {
    const int i = e / kBlock;
    const int j = e % kBlock;
    if (i <= j && j < size)
      simt::store(corner + i * run.in + j, static_cast<float>(i == j ? shared.root[i] : shared.r[i][j]));
    simt::store(inverse + e, i <= j ? static_cast<float>(shared.u[i][j]) : 0.0f);
  }
}

/// Block (t, p): rows [64 t, 64 t + 64) above the triangle, times its inverse transposed, where they are.
__global__ void __launch_bounds__(kThreads) solve_panel(GptqRun run, int64_t first, int size) {
  TileProduct product(simt::shared<ProductSlabs>());
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  float* const rows =
      run.hessian + blockIdx.y * run.in * run.in + int64_t{blockIdx.x} * kBlock * run.in + first;
  const float* const inverse = run.inverse + int64_t{blockIdx.y} * kBlock * kBlock;
  product.add<Along::k, Along::k>(
      0, size, [&](int i, int64_t k) { return simt::load(rows + i * run.in + k); },
      [&](int64_t k, int j) { return simt::load(inverse + j * kBlock + k); });
  // Every element was read before the product's last barrier.
  product.for_each([&](int i, int j, float sum) {
    if (j < size) simt::store(rows + i * run.in + j, sum);
  });
}

/// Block (t, p): tile t of the triangle before the panel, less the panel's product with itself.
__global__ void __launch_bounds__(kThreads) subtract_products(GptqRun run, int64_t first, int size) {
  TileProduct product(simt::shared<ProductSlabs>());
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const UpperTile tile = upper_tile(blockIdx.x);
  float* const a = run.hessian + blockIdx.y * run.in * run.in;
  const float* const left = a + tile.row * kBlock * run.in + first;
  const float* const right = a + tile.column * kBlock * run.in + first;
  product.add<Along::k, Along::k>(
      0, size, [&](int i, int64_t k) { return simt::load(left + i * run.in + k); },
      [&](int64_t k, int j) { return simt::load(right + j * run.in + k); });
  product.for_each([&](int i, int j, float sum) {
    const int64_t row = tile.row * kBlock + i;
    const int64_t col = tile.column * kBlock + j;
    if (row > col) return;
    float* const place = a + row * run.in + col;
    simt::store(place, simt::load(place) - sum);
  });
}

constexpr int kInvertThreads = static_cast<int>(kGptqBlock);

struct Inverse {
  double column[kUpperFloats];  // at upper_place(row, column)
};

/// Block (b, p): the inverse of block b's triangle, a thread a column.
__global__ void __launch_bounds__(kInvertThreads) invert(GptqRun run, BlockCut cut) {
  auto& shared = simt::shared<Inverse>();
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const BlockRange block = cut.block(blockIdx.x);
  const auto size = static_cast<int>(block.cols);
  const float* const corner = run.hessian + blockIdx.y * run.in * run.in + block.first * (run.in + 1);
  float* const upper = run.upper + (int64_t{blockIdx.y} * cut.blocks() + blockIdx.x) * kUpperFloats;
  const int col = static_cast<int>(threadIdx.x);
  for (int i = static_cast<int>(kGptqBlock) - 1; i >= 0; --i) {
    double value = 0;
    if (i < size) {
      // All columns at the same element of the factor, which is read once for them.
      double sum = i == col ? 1.0 : 0.0;
      for (int k = i + 1; k < size; ++k) {
        const auto r = static_cast<double>(simt::load(corner + i * run.in + k));
        if (k <= col) sum -= r * shared.column[upper_place(k, col)];
      }
      const auto diagonal = static_cast<double>(simt::load(corner + i * (run.in + 1)));
      if (i <= col && col < size) value = sum / diagonal;
    }
    if (col < i / 4 * 4) continue;
    shared.column[upper_place(i, col)] = value;
    simt::store(upper + upper_place(i, col), static_cast<float>(value));
  }
}

}  // namespace

void measure_products(void* opaque_stream, const GptqRun& run, const PerProblem<const float*>& products,
                      bool by_diagonal, int64_t whole_group) {
  const int64_t group = whole_group > 0 ? whole_group : run.in;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const auto problems = static_cast<unsigned>(run.problems);
  simt::launch(measure, dim3(1, problems), dim3(kThreads), sizeof(Reduction), stream, run, products);
  const dim3 columns(blocks_of((run.in + kThreads - 1) / kThreads), problems);
  if (by_diagonal) simt::launch(measure_groups, columns, dim3(kThreads), 0, stream, run, products, group);
  simt::launch(rank_columns, columns, dim3(kThreads), sizeof(Keys), stream, run, products, by_diagonal,
               group);
}

void gather_hessian(void* stream, const GptqRun& run, const PerProblem<const float*>& products) {
  const int64_t across = (run.in + kThreads - 1) / kThreads;
  simt::launch(gather, dim3(blocks_of(across * run.in), static_cast<unsigned>(run.problems)), dim3(kThreads),
               0, static_cast<simt::Stream>(stream), run, products);
}

void factor_hessian(void* opaque_stream, const GptqRun& run, const PerProblem<const float*>& products,
                    const PerProblem<double>& damping) {
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const auto problems = static_cast<unsigned>(run.problems);
  simt::launch(damp, dim3(blocks_of((run.in + kThreads - 1) / kThreads), problems), dim3(kThreads), 0, stream,
               run, products, damping);
  for (int64_t block = (run.in - 1) / kBlock; block >= 0; --block) {
    const int64_t first = block * kBlock;
    const int size = static_cast<int>(run.in - first < kBlock ? run.in - first : kBlock);
    simt::launch(factor_triangle, dim3(1, problems), dim3(kThreads), sizeof(Triangle), stream, run, first,
                 size);
    if (block == 0) break;
    simt::launch(solve_panel, dim3(blocks_of(block), problems), dim3(kThreads), sizeof(ProductSlabs), stream,
                 run, first, size);
    simt::launch(subtract_products, dim3(blocks_of(upper_tiles(block)), problems), dim3(kThreads),
                 sizeof(ProductSlabs), stream, run, first, size);
  }
}

void invert_triangles(void* stream, const GptqRun& run, const BlockCut& cut) {
  simt::launch(invert, dim3(blocks_of(cut.blocks()), static_cast<unsigned>(run.problems)),
               dim3(kInvertThreads), sizeof(Inverse), static_cast<simt::Stream>(stream), run, cut);
}

}  // namespace quantaria::ops
