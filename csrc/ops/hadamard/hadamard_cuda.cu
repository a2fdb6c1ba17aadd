#include "ops/hadamard/hadamard_cuda.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/error.h"
#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"
#include "ops/hadamard/base_orders.h"
#include "ops/hadamard/hadamard.h"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 256;             // elements that a warp transforms in its registers
constexpr int64_t kSharedRow = 16384;  // floats of a row that stay in shared memory

/// The signs of a base matrix: bit j of row i is set where the entry is -1.
struct BaseSigns {
  uint32_t row[kLargestBaseOrder][(kLargestBaseOrder + 31) / 32];
};
struct NoSigns {};

/// Rows of n = m * size elements, size a power of two, from one dtype to another.
struct Transform {
  int64_t rows;
  int n;
  int m;
  int size;
  float scale;
  const std::byte* x;
  DType x_dtype;
  std::byte* y;
  DType y_dtype;

  __device__ float load(int64_t i) const { return load_float(x_dtype, x, i); }
  __device__ void store(int64_t i, float value) const {
    store_value(y_dtype, y, i, {true, value * scale, 0});
  }
};

/// Count values `apart` from each other: all stages between them, the widest first.
template <int Count>
__device__ __forceinline__ void stages_between(float (&v)[Count]) {
#pragma unroll
  for (int apart = Count / 2; apart > 0; apart /= 2)
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if ((i & apart) != 0) continue;
      const float sum = v[i] + v[i + apart];
      v[i + apart] = v[i] - v[i + apart];
      v[i] = sum;
    }
}

/// A stage between lanes: the sum in the lower one, the difference in the upper one.
template <int Count>
__device__ __forceinline__ void stage_of_lanes(int lane, int apart, float (&v)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float other = __shfl_xor_sync(~0u, v[i], apart);
    v[i] = (lane & apart) != 0 ? other - v[i] : other + v[i];
  }
}

/// Stages of `size` and less (up to kTile) of kTile elements, element i * 32 + lane in v[i]: from the widest
/// to 16 apart, then 1, 2, 4 and 8, as on the CPU.
__device__ __forceinline__ void transform_tile(int lane, int size, float (&v)[kTile / 32]) {
#pragma unroll
  for (int apart = 4; apart > 0; apart /= 2) {
    if (size <= apart * 32) continue;
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      if ((i & apart) != 0) continue;
      const float sum = v[i] + v[i + apart];
      v[i + apart] = v[i] - v[i + apart];
      v[i] = sum;
    }
  }
  if (size > 16) stage_of_lanes(lane, 16, v);
  for (int apart = 1; apart < 16 && apart < size; apart *= 2) stage_of_lanes(lane, apart, v);
}

/// Sizes up to kTile, whose rows follow each other without gaps: a warp for each tile of them.
__global__ void __launch_bounds__(kThreads) transform_tiles(const __grid_constant__ Transform p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t count = p.rows * p.n;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / 32) * kTile;
  for (int64_t first = (int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32) * kTile; first < count;
       first += stride) {
    float v[kTile / 32];
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int64_t at = first + i * 32 + lane;
      v[i] = at < count ? p.load(at) : 0.0f;
    }
    transform_tile(lane, p.size, v);
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int64_t at = first + i * 32 + lane;
      if (at < count) p.store(at, v[i]);
    }
  }
}

/// Element (i, e) of the base matrix times blocks: the sum over j of +-value(j * size + e), in order.
template <class Value>
__device__ __forceinline__ float base_sum(const uint32_t* signs, int m, int64_t size, int64_t e,
                                          const Value& value) {
  float sum = 0;
  for (int j = 0; j < m; ++j) {
    const float v = value(j * size + e);
    sum = (signs[j / 32] >> j % 32 & 1) != 0 ? sum - v : sum + v;
  }
  return sum;
}

/// One pass over a row in shared memory: Count values for each thread, `apart` from each other.
template <int Count>
__device__ void pass(float* row, int n, int apart) {
  for (int i = static_cast<int>(threadIdx.x); i < n / Count; i += kThreads) {
    float* const first = row + i / apart * apart * Count + i % apart;
    float v[Count];
#pragma unroll
    for (int k = 0; k < Count; ++k) v[k] = first[k * apart];
    stages_between(v);
#pragma unroll
    for (int k = 0; k < Count; ++k) first[k * apart] = v[k];
  }
  __syncthreads();  // the pass is done for all
}

template <int Capacity, bool Based>
struct RowShared {
  float row[Capacity];
  float given[Based ? Capacity : 1];
};

/// A row for each block, in shared memory from its first stage to its last.
template <int Capacity, bool Based>
__global__ void __launch_bounds__(kThreads)
    transform_row(const __grid_constant__ Transform p,
                  const __grid_constant__ std::conditional_t<Based, BaseSigns, NoSigns> base) {
  auto& shared = simt::shared<RowShared<Capacity, Based>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t start = int64_t{blockIdx.x} * p.n;
  for (int i = thread; i < p.n; i += kThreads) {
    if constexpr (Based)
      shared.given[i] = p.load(start + i);
    else
      shared.row[i] = p.load(start + i);
  }
  // Without a base matrix the first pass gives each thread what it has put there itself.
  if constexpr (Based) {
    __syncthreads();  // the row is there for all
    for (int i = thread; i < p.n; i += kThreads)
      shared.row[i] = base_sum(base.row[i / p.size], p.m, p.size, i % p.size,
                               [&](int64_t at) { return shared.given[at]; });
    __syncthreads();  // the products with the base matrix are there for all
  }
  int size = p.size;
  for (; size >= 8 * kTile; size /= 8) pass<8>(shared.row, p.n, size / 8);
  if (size == 4 * kTile) pass<4>(shared.row, p.n, size / 4);
  if (size == 2 * kTile) pass<2>(shared.row, p.n, size / 2);
  const int lane = thread % 32;
  for (int first = thread / 32 * kTile; first < p.n; first += kThreads / 32 * kTile) {
    float v[kTile / 32];
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int at = first + i * 32 + lane;
      v[i] = at < p.n ? shared.row[at] : 0.0f;
    }
    transform_tile(lane, size > kTile ? kTile : size, v);
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      const int at = first + i * 32 + lane;
      if (at < p.n) p.store(start + at, v[i]);
    }
  }
}

/// Rows that do not fit there: products with the base matrix to float32 in device memory.
__global__ void __launch_bounds__(kThreads)
    base_of_rows(const std::byte* x, DType dtype, int64_t rows, int64_t n, int m,
                 const __grid_constant__ BaseSigns base, float* to) {
  const int64_t size = n / m;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * n; i += stride) {
    const int64_t row = i / n;
    const int64_t at = i % n;
    const float sum = base_sum(base.row[at / size], m, size, at % size,
                               [&](int64_t j) { return load_float(dtype, x, row * n + j); });
    simt::store(to + i, sum);
  }
}

/// The stages `apart` and 2, 4 apart of it, from one place in device memory to another or the same.
template <int Count>
__global__ void __launch_bounds__(kThreads)
    pass_of_rows(const std::byte* x, DType dtype, int64_t count, int64_t apart, float* to) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count / Count; i += stride) {
    const int64_t first = i / apart * apart * Count + i % apart;
    float v[Count];
#pragma unroll
    for (int k = 0; k < Count; ++k) v[k] = load_float(dtype, x, first + k * apart);
    stages_between(v);
#pragma unroll
    for (int k = 0; k < Count; ++k) simt::store(to + first + k * apart, v[k]);
  }
}

BaseSigns signs_of(int64_t m) {
  const std::vector<int8_t> matrix = base_matrix(m);
  BaseSigns signs{};
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j)
      if (matrix[static_cast<size_t>(i * m + j)] < 0) signs.row[i][j / 32] |= 1u << j % 32;
  return signs;
}

template <int Capacity>
void launch_row(simt::Stream stream, const Transform& p) {
  const dim3 blocks(static_cast<unsigned>(p.rows));
  if (p.m == 1)
    simt::launch(transform_row<Capacity, false>, blocks, dim3(kThreads), sizeof(RowShared<Capacity, false>),
                 stream, p, NoSigns{});
  else
    simt::launch(transform_row<Capacity, true>, blocks, dim3(kThreads), sizeof(RowShared<Capacity, true>),
                 stream, p, signs_of(p.m));
}

void launch_rows(simt::Stream stream, const Transform& p) {
  if (p.m == 1 && p.size <= kTile) {
    simt::launch(transform_tiles, cuda::blocks_for(p.rows * p.n, kThreads / 32 * kTile), dim3(kThreads), 0,
                 stream, p);
    return;
  }
  if (p.rows > 0x7fffffff) fail(ErrorCode::unsupported, "x: ", p.rows, " rows, at most 2^31 - 1 expected");
  if (p.n <= 1024) return launch_row<1024>(stream, p);
  if (p.n <= 4096) return launch_row<4096>(stream, p);
  launch_row<kSharedRow>(stream, p);
}

template <int Count>
void launch_pass(simt::Stream stream, const std::byte* x, DType dtype, int64_t count, int64_t apart,
                 float* to) {
  simt::launch(pass_of_rows<Count>, cuda::blocks_for(count / Count, kThreads), dim3(kThreads), 0, stream, x,
               dtype, count, apart, to);
}

}  // namespace

int64_t hadamard_workspace(int64_t rows, int64_t n) { return n > kSharedRow ? rows * n * 4 : 0; }

void hadamard_cuda(void* opaque_stream, DType dtype, int64_t rows, int64_t n, float scale, const std::byte* x,
                   std::byte* y, std::byte* workspace) {
  check_hadamard_size(n);
  if (dtype != DType::float32 && dtype != DType::float16 && dtype != DType::bfloat16)
    fail(ErrorCode::dtype, "x: ", name_of(dtype), " given, float32, float16 or bfloat16 expected");
  if (rows == 0 || n == 0) return;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const int64_t m = base_order(n);
  if (n <= kSharedRow)
    return launch_rows(stream, {rows, static_cast<int>(n), static_cast<int>(m), static_cast<int>(n / m),
                                scale, x, dtype, y, dtype});
  // Pass by pass until a part of a row fits into shared memory.
  auto* const wide = reinterpret_cast<float*>(workspace);
  const std::byte* from = x;
  DType from_dtype = dtype;
  const auto is_wide = [&] {
    from = workspace;
    from_dtype = DType::float32;
  };
  if (m > 1) {
    simt::launch(base_of_rows, cuda::blocks_for(rows * n, kThreads), dim3(kThreads), 0, stream, from,
                 from_dtype, rows, n, static_cast<int>(m), signs_of(m), wide);
    is_wide();
  }
  int64_t size = n / m;
  for (; size > kSharedRow; size /= 2) {
    // Three stages at once while they are wanted.
    if (size >= 8 * kSharedRow) {
      launch_pass<8>(stream, from, from_dtype, rows * n, size / 8, wide);
      size /= 4;
    } else {
      launch_pass<2>(stream, from, from_dtype, rows * n, size / 2, wide);
    }
    is_wide();
  }
  launch_rows(stream, {rows * (n / size), static_cast<int>(size), 1, static_cast<int>(size), scale, from,
                       from_dtype, y, dtype});
}

}  // namespace quantaria::ops
