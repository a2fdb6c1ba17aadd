#include "ops/hadamard/hadamard_cuda.h"

#include "core/error.h"
#include "cuda/grid.h"
#include "ops/hadamard/hadamard.h"
#include "ops/hadamard/transform.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = kHadamardThreads;

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

/// A row for each block.
template <int Capacity, bool Based>
__global__ void __launch_bounds__(kThreads)
    transform_row(const __grid_constant__ Transform p,
                  const __grid_constant__ std::conditional_t<Based, BaseSigns, NoSigns> base) {
  const int64_t start = int64_t{blockIdx.x} * p.n;
  transform_in_shared(p, base, start, simt::shared<RowShared<Capacity, Based>>(),
                      [&](int i, float value) { p.store(start + i, value); });
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
