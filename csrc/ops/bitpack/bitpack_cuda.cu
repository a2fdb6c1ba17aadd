#include "ops/bitpack/bitpack_cuda.h"

#include <limits>

#include "core/error.h"
#include "cuda/grid.h"
#include "cuda/verdict.h"
#include "ops/copy/cast_value.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

/// Column (or place) i of each run of eight comes from at[i].
struct RunOrder {
  bool given;
  uint8_t at[8];

  __device__ int64_t of(int64_t i) const { return given ? i / 8 * 8 + at[i % 8] : i; }
};

RunOrder columns_of_places(const std::optional<NibbleOrder>& order) {
  RunOrder run{order.has_value(), {}};
  for (size_t j = 0; order && j < 8; ++j) run.at[j] = static_cast<uint8_t>((*order)[j]);
  return run;
}

RunOrder places_of_columns(const std::optional<NibbleOrder>& order) {
  RunOrder run{order.has_value(), {}};
  for (size_t j = 0; order && j < 8; ++j) run.at[(*order)[j]] = static_cast<uint8_t>(j);
  return run;
}

__device__ int64_t integer_at(const ConstMatrix& m, int64_t row, int64_t col) {
  return load_value(m.dtype, m.data, row * m.row_stride + col * m.col_stride).integer;
}

/// A thread makes a word, codes on its borders once more than needed.
__global__ void __launch_bounds__(kThreads)
    pack(ConstMatrix codes, int bits, int32_t offset, const __grid_constant__ RunOrder order, uint32_t* words,
         int64_t row_words, cuda::Verdict* verdict) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t limit = int64_t{1} << bits;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < codes.rows * row_words; i += stride) {
    const int64_t row = i / row_words;
    const int64_t first_bit = i % row_words * 32;
    int64_t place = first_bit / bits;
    int at = static_cast<int>(place * bits - first_bit);
    uint32_t word = 0;
    for (; at < 32 && place < codes.cols; ++place, at += bits) {
      const int64_t col = order.of(place);
      const int64_t code = integer_at(codes, row, col) + offset;
      if (code < 0 || code >= limit) {
        cuda::refuse(verdict, row * codes.cols + col);
        continue;
      }
      word |= at >= 0 ? static_cast<uint32_t>(code) << at : static_cast<uint32_t>(code) >> -at;
    }
    simt::store(words + i, word);
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack(const uint8_t* packed, int64_t packed_stride, int bits, int32_t offset,
           const __grid_constant__ RunOrder order, Matrix codes) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < codes.rows * codes.cols; i += stride) {
    const int64_t row = i / codes.cols;
    const int64_t col = i % codes.cols;
    const int64_t bit = order.of(col) * bits;
    const uint8_t* const from = packed + row * packed_stride + bit / 8;
    const int shift = static_cast<int>(bit % 8);
    uint32_t code = simt::load(from);
    if (shift + bits > 8) code |= uint32_t{simt::load(from + 1)} << 8;
    code = code >> shift & ((1u << bits) - 1);
    store_value(codes.dtype, codes.data, row * codes.row_stride + col * codes.col_stride,
                {false, 0, int64_t{code} - offset});
  }
}

constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;

__device__ uint32_t swapped(uint32_t x) { return (x & kLowNibbles) << 4 | (x >> 4 & kLowNibbles); }

/// `vectors` of 16 bytes, both sides aligned to them; `rest` bytes follow.
__global__ void __launch_bounds__(kThreads)
    swap_halves(const uint8_t* in, uint8_t* out, int64_t vectors, int64_t rest) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = thread; i < vectors; i += stride) {
    const uint4 v = simt::load(reinterpret_cast<const uint4*>(in) + i);
    simt::store(reinterpret_cast<uint4*>(out) + i,
                uint4{swapped(v.x), swapped(v.y), swapped(v.z), swapped(v.w)});
  }
  for (int64_t i = vectors * 16 + thread; i < vectors * 16 + rest; i += stride)
    simt::store(out + i, static_cast<uint8_t>(swapped(simt::load(in + i))));
}

__global__ void __launch_bounds__(kThreads)
    pack_planes(const uint8_t* codes, int64_t rows, int64_t cols, int bits, int64_t packed_rows,
                uint8_t* packed, cuda::Verdict* verdict) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packed_rows * cols; i += stride) {
    uint32_t byte = 0;
    int shift = 0;
    for (int64_t at = i; shift < 8 && at < rows * cols; at += packed_rows * cols, shift += bits) {
      const uint32_t code = simt::load(codes + at);
      if (code >> bits != 0) cuda::refuse(verdict, at);
      byte |= code << shift;
    }
    simt::store(packed + i, static_cast<uint8_t>(byte));
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_planes(const uint8_t* packed, int64_t count, int bits, int64_t plane, uint8_t* codes) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const uint32_t byte = simt::load(packed + i % plane);
    const int shift = static_cast<int>(i / plane) * bits;
    simt::store(codes + i, static_cast<uint8_t>(byte >> shift & ((1u << bits) - 1)));
  }
}

struct Limits {
  int64_t low;
  int64_t high;
};

Limits limits_of(DType dtype) {
  const auto of = [](auto zero) -> Limits {
    using T = decltype(zero);
    return {std::numeric_limits<T>::min(), std::numeric_limits<T>::max()};
  };
  switch (dtype) {
    case DType::int8:
      return of(int8_t{});
    case DType::uint8:
      return of(uint8_t{});
    case DType::int16:
      return of(int16_t{});
    case DType::int32:
      return of(int32_t{});
    default:
      return of(int64_t{});
  }
}

/// Sums beyond 64 bits saturate to what is clamped like them, or are refused.
__global__ void __launch_bounds__(kThreads)
    add_offset(ConstMatrix in, int64_t delta, bool clamped, CodeRange range, Limits limits, Matrix out,
               cuda::Verdict* verdict) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < in.rows * in.cols; i += stride) {
    const int64_t row = i / in.cols;
    const int64_t col = i % in.cols;
    const int64_t value = integer_at(in, row, col);
    int64_t sum = static_cast<int64_t>(static_cast<uint64_t>(value) + static_cast<uint64_t>(delta));
    bool overflow = (value < 0) == (delta < 0) && (sum < 0) != (delta < 0);
    if (clamped) {
      if (overflow)
        sum = delta > 0 ? range.high : range.low;
      else
        sum = sum < range.low ? range.low : sum > range.high ? range.high : sum;
      overflow = false;
    }
    if (overflow || sum < limits.low || sum > limits.high) {
      cuda::refuse(verdict, i);
      continue;
    }
    store_value(out.dtype, out.data, row * out.row_stride + col * out.col_stride, {false, 0, sum});
  }
}

cuda::Verdict* verdict_at(std::byte* place) { return reinterpret_cast<cuda::Verdict*>(place); }

}  // namespace

void pack_bits_cuda(void* stream, const ConstMatrix& codes, int bits, int32_t offset, uint8_t* packed,
                    const std::optional<NibbleOrder>& order, std::byte* verdict) {
  check_packing(codes.dtype, bits, order, codes.cols);
  const int64_t row_words = packed_row_bytes(codes.cols, bits) / 4;
  if (codes.rows * row_words == 0) return;
  simt::launch(pack, cuda::blocks_for(codes.rows * row_words, kThreads), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), codes, bits, offset, columns_of_places(order),
               reinterpret_cast<uint32_t*>(packed), row_words, verdict_at(verdict));
}

void unpack_bits_cuda(void* stream, const uint8_t* packed, int64_t packed_stride, int bits, int32_t offset,
                      const Matrix& codes, const std::optional<NibbleOrder>& order) {
  check_unpacking(codes.dtype, bits, offset, order, codes.cols);
  if (codes.rows * codes.cols == 0) return;
  simt::launch(unpack, cuda::blocks_for(codes.rows * codes.cols, kThreads), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), packed, packed_stride, bits, offset,
               places_of_columns(order), codes);
}

void swap_nibbles_cuda(void* stream, const uint8_t* in, int64_t bytes, uint8_t* out) {
  if (bytes == 0) return;
  const bool aligned =
      reinterpret_cast<uintptr_t>(in) % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const int64_t vectors = aligned ? bytes / 16 : 0;
  simt::launch(swap_halves, cuda::blocks_for(aligned ? vectors : bytes, kThreads), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), in, out, vectors, bytes - vectors * 16);
}

void pack_planar_cuda(void* stream, const uint8_t* codes, int64_t rows, int64_t cols, int bits,
                      uint8_t* packed, std::byte* verdict) {
  const int64_t planes = 8 / bits;
  const int64_t packed_rows = (rows + planes - 1) / planes;
  if (packed_rows * cols == 0) return;
  simt::launch(pack_planes, cuda::blocks_for(packed_rows * cols, kThreads), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), codes, rows, cols, bits, packed_rows, packed,
               verdict_at(verdict));
}

void unpack_planar_cuda(void* stream, const uint8_t* packed, int64_t rows, int64_t cols, int bits,
                        uint8_t* codes) {
  const int64_t planes = 8 / bits;
  const int64_t packed_rows = (rows + planes - 1) / planes;
  if (rows * cols == 0) return;
  simt::launch(unpack_planes, cuda::blocks_for(rows * cols, kThreads), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), packed, rows * cols, bits, packed_rows * cols, codes);
}

void offset_codes_cuda(void* stream, const ConstMatrix& in, int64_t delta,
                       const std::optional<CodeRange>& clamp, const Matrix& out, std::byte* verdict) {
  if (in.rows * in.cols == 0) return;
  simt::launch(add_offset, cuda::blocks_for(in.rows * in.cols, kThreads), dim3(kThreads), 0,
               static_cast<simt::Stream>(stream), in, delta, clamp.has_value(),
               clamp.value_or(CodeRange{0, 0}), limits_of(out.dtype), out, verdict_at(verdict));
}

}  // namespace quantaria::ops
