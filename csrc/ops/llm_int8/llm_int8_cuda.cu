#include "ops/llm_int8/llm_int8_cuda.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"
#include "ops/dequant_matmul/int8_rows.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

/// The pattern of the least large magnitude; above infinity's if nothing is large.
uint32_t large_bits(float threshold) {
  return threshold > 0 ? numerics::bits_of(threshold) : ~numerics::kSignBit;
}

/// Where rows become codes: row r at codes + r * row_bytes, zeros from cols to row_bytes.
struct Target {
  float* absmax;
  int8_t* codes;  // null: only the mask is wanted
  int64_t row_bytes;
};

struct RowShared {
  uint32_t most[kWarps];
};

/// A block for each row: its absmax without large values, its codes, and a bit for each column of a large
/// value, in a mask that starts out as 0.
__global__ void __launch_bounds__(kThreads)
    quantize_row(ConstMatrix x, uint32_t large, const __grid_constant__ Target to, uint32_t* mask) {
  auto& shared = simt::shared<RowShared>();
  const auto thread = static_cast<int>(threadIdx.x);
  const auto at = [&](int64_t row, int64_t col) {
    return load_float(x.dtype, x.data, row * x.row_stride + col * x.col_stride);
  };
  const int64_t row = blockIdx.x;
  uint32_t most = 0;
  for (int64_t first = 0; first < x.cols; first += kThreads) {
    const int64_t col = first + thread;
    const float value = col < x.cols ? at(row, col) : 0.0f;
    const uint32_t magnitude = numerics::bits_of(value) & ~numerics::kSignBit;
    const bool is_large = magnitude >= large && magnitude <= numerics::kInfinityBits;
    if (!is_large && magnitude > most) most = magnitude;
    const uint32_t found = __ballot_sync(~0u, is_large);
    if (found != 0 && thread % 32 == 0) atomicOr(mask + col / 32, found);
  }
  if (!to.codes) return;
  for (int apart = 16; apart > 0; apart /= 2) {
    const uint32_t other = __shfl_xor_sync(~0u, most, apart);
    most = other > most ? other : most;
  }
  if (thread % 32 == 0) shared.most[thread / 32] = most;
  __syncthreads();  // every warp's absmax is there
  for (const uint32_t other : shared.most) most = other > most ? other : most;
  const float absmax = numerics::float_of(most);
  const float factor = absmax > 0 && numerics::is_finite(absmax) ? 127.0f / absmax : 0.0f;
  if (thread == 0) simt::store(to.absmax + row, absmax);
  for (int64_t col = thread; col < to.row_bytes; col += kThreads) {
    const float scaled = col < x.cols ? at(row, col) * factor : 0.0f;
    const float above = scaled > -127.0f ? scaled : -127.0f;
    const float clamped = above < 127.0f ? above : 127.0f;
    const bool is_number = !numerics::is_nan(scaled);
    const auto code = static_cast<int8_t>(numerics::bits_of(clamped + numerics::kRoundingMagic) & 0xffu);
    simt::store(to.codes + row * to.row_bytes + col, is_number ? code : int8_t{0});
  }
}

/// Of two rounds: the barrier of the next one parts the readers of the last one from the writers after it.
struct CompactShared {
  int of_warp[2][kWarps];
};

/// Bits before this thread's, and how many there are in all of the block.
__device__ int bits_before(int bits, int (&of_warp)[kWarps], int* all) {
  int inclusive = bits;
  for (unsigned by = 1; by < 32; by *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, by);
    if (threadIdx.x % 32 >= by) inclusive += other;
  }
  if (threadIdx.x % 32 == 31) of_warp[threadIdx.x / 32] = inclusive;
  __syncthreads();  // every warp's bits are counted
  int before = inclusive - bits;
  *all = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < static_cast<int>(threadIdx.x / 32)) before += of_warp[warp];
    *all += of_warp[warp];
  }
  return before;
}

/// Block 0 lists the columns of the mask, rising; the others clear the codes of those columns.
__global__ void __launch_bounds__(kThreads)
    compact(const uint32_t* mask, int64_t words, const __grid_constant__ Target to, int64_t rows,
            int32_t* columns, int32_t* count) {
  auto& shared = simt::shared<CompactShared>();
  if (blockIdx.x == 0) {
    if (!columns) return;
    int found = 0;
    for (int64_t first = 0; first < words; first += kThreads) {
      const int64_t word = first + threadIdx.x;
      uint32_t bits = word < words ? simt::load(mask + word) : 0;
      int bits_here = 0;
      for (uint32_t rest = bits; rest != 0; rest &= rest - 1) ++bits_here;
      int all = 0;
      int place = found + bits_before(bits_here, shared.of_warp[first / kThreads % 2], &all);
      for (int bit = 0; bits != 0; ++bit, bits >>= 1)
        if ((bits & 1) != 0) simt::store(columns + place++, static_cast<int32_t>(word * 32 + bit));
      found += all;
    }
    if (threadIdx.x == 0) simt::store(count, found);
    return;
  }
  const int64_t stride = int64_t{gridDim.x - 1} * kThreads;
  for (int64_t i = int64_t{blockIdx.x - 1} * kThreads + threadIdx.x; i < rows * words; i += stride) {
    const int64_t row = i / words;
    const int64_t word = i % words;
    uint32_t bits = simt::load(mask + word);
    for (int bit = 0; bits != 0; ++bit, bits >>= 1)
      if ((bits & 1) != 0) simt::store(to.codes + row * to.row_bytes + word * 32 + bit, int8_t{0});
  }
}

void launch_rows(simt::Stream stream, const ConstMatrix& x, float threshold, const Target& to,
                 uint32_t* mask) {
  if (x.rows == 0) return;
  if (x.rows > 0x7fffffff) fail(ErrorCode::unsupported, "x: ", x.rows, " rows, at most 2^31 - 1 expected");
  simt::launch(quantize_row, dim3(static_cast<unsigned>(x.rows)), dim3(kThreads), sizeof(RowShared), stream,
               x, large_bits(threshold), to, mask);
}

int64_t mask_words(int64_t cols) { return (cols + 31) / 32; }

void launch_compact(simt::Stream stream, const uint32_t* mask, int64_t cols, const Target& to, int64_t rows,
                    int32_t* columns, int32_t* count) {
  const int64_t words = mask_words(cols);
  dim3 blocks = cuda::blocks_for(rows * words, kThreads);
  blocks.x += 1;
  simt::launch(compact, blocks, dim3(kThreads), sizeof(CompactShared), stream, mask, words, to, rows, columns,
               count);
}

/// The mask, the count, the list and the rows of a product.
struct Room {
  uint32_t* mask;
  int32_t* count;
  int32_t* columns;
  std::byte* rows;

  Room(std::byte* workspace, int64_t cols)
      : mask(reinterpret_cast<uint32_t*>(workspace)),
        count(reinterpret_cast<int32_t*>(mask + mask_words(cols))),
        columns(count + 1),
        rows(workspace + bytes(cols)) {}
  static int64_t bytes(int64_t cols) { return (mask_words(cols) * 4 + 4 + cols * 4 + 15) / 16 * 16; }
};

}  // namespace

void outlier_words_cuda(void* stream, const ConstMatrix& x, float threshold, uint32_t* words) {
  if (x.cols > 0 && threshold > 0)
    launch_rows(static_cast<simt::Stream>(stream), x, threshold, {nullptr, nullptr, 0}, words);
}

void quantize_activations_cuda(void* opaque_stream, const ConstMatrix& x, float threshold,
                               const uint32_t* words, float* absmax, int8_t* codes) {
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const Target to{absmax, codes, x.cols};
  // The same columns once more: the mask stays as it is.
  launch_rows(stream, x, threshold, to, const_cast<uint32_t*>(words));
  if (x.rows > 0 && x.cols > 0 && threshold > 0)
    launch_compact(stream, words, x.cols, to, x.rows, nullptr, nullptr);
}

int64_t llm_int8_workspace(int64_t rows, const CodedMatrix& weight) {
  return Room::bytes(weight.in) + int8_rows_bytes(rows, weight);
}

int64_t llm_int8_zeroed(const CodedMatrix& weight) { return mask_words(weight.in) * 4; }

void llm_int8_matmul_cuda(void* opaque_stream, const ConstMatrix& x, float threshold,
                          const DeviceWeight& weight, const ConstMatrix* bias, const Matrix& y,
                          std::byte* workspace) {
  if (y.rows == 0 || y.cols == 0) return;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const Room room(workspace, x.cols);
  Int8Rows rows = int8_rows_in(room.rows, x.rows, weight.matrix);
  rows.scale_divisor = 127;
  const Target to{rows.scales, rows.codes, rows.row_bytes};
  if (x.cols > 0) launch_rows(stream, x, threshold, to, room.mask);
  if (x.cols == 0 || !(threshold > 0)) return multiply_int8_rows(stream, rows, nullptr, weight, bias, y);
  launch_compact(stream, room.mask, x.cols, to, x.rows, room.columns, room.count);
  const OutlierColumns outliers{x, room.columns, room.count};
  multiply_int8_rows(stream, rows, &outliers, weight, bias, y);
}

}  // namespace quantaria::ops
