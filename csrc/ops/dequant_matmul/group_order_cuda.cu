#include "ops/dequant_matmul/group_order_cuda.h"

#include "cuda/grid.h"
#include "ops/dequant_matmul/coded_value.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

/// A thread for each word: of codes that lie across its ends it writes its own bits.
__global__ void __launch_bounds__(kThreads)
    order_codes(const __grid_constant__ CodedMatrix from, const int32_t* columns, int64_t count,
                uint32_t* words) {
  const int64_t row_words = count * from.bits / 32;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < from.out * row_words; i += stride) {
    const int64_t row = i / row_words;
    const int64_t bit = i % row_words * 32;
    uint32_t word = 0;
    for (int64_t k = bit / from.bits; k * from.bits < bit + 32; ++k) {
      const int32_t column = simt::load(columns + k);
      if (column < 0) continue;
      const uint32_t code = code_at(from, from.bits, row * from.row_bits + int64_t{column} * from.bits);
      const auto shift = static_cast<int>(k * from.bits - bit);
      word |= shift < 0 ? code >> -shift : code << shift;
    }
    simt::store(words + i, word);
  }
}

__global__ void __launch_bounds__(kThreads)
    order_activations(ConstMatrix x, const int32_t* columns, int64_t count, uint16_t* to) {
  const auto* const values = reinterpret_cast<const uint16_t*>(x.data);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < x.rows * count; i += stride) {
    const int32_t column = simt::load(columns + i % count);
    const int64_t place = i / count * x.row_stride + int64_t{column} * x.col_stride;
    simt::store(to + i, column < 0 ? uint16_t{0} : simt::load(values + place));
  }
}

}  // namespace

void order_codes_cuda(void* stream, const CodedMatrix& from, const int32_t* columns, int64_t count,
                      uint32_t* words) {
  const int64_t work = from.out * (count * from.bits / 32);
  if (work > 0)
    simt::launch(order_codes, cuda::blocks_for(work, kThreads), dim3(kThreads), 0,
                 static_cast<simt::Stream>(stream), from, columns, count, words);
}

void order_activations_cuda(void* stream, const ConstMatrix& x, const int32_t* columns, int64_t count,
                            uint16_t* to) {
  if (x.rows * count > 0)
    simt::launch(order_activations, cuda::blocks_for(x.rows * count, kThreads), dim3(kThreads), 0,
                 static_cast<simt::Stream>(stream), x, columns, count, to);
}

}  // namespace quantaria::ops
