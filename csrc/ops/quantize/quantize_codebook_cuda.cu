#include "ops/bitpack/bitpack.h"
#include "ops/quantize/book_rank.cuh"
#include "ops/quantize/call_room.h"
#include "ops/quantize/cascade_mean.cuh"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/pack_words.cuh"

namespace quantaria::ops {
namespace {

/// Thresholds of a book, and the stored code of each rank.
template <int Size>
struct Thresholds {
  float threshold[Size];
  uint8_t pattern[Size];
};

Thresholds<16> thresholds_of(const numerics::Book16& book) {
  Thresholds<16> t{};
  std::copy_n(book.thresholds, 16, t.threshold);
  std::copy_n(book.patterns, 16, t.pattern);
  return t;
}

Thresholds<256> dynamic_thresholds() {
  Thresholds<256> t{};
  std::copy_n(numerics::kDynamic8.thresholds, 256, t.threshold);
  for (int i = 0; i < 256; ++i) t.pattern[i] = static_cast<uint8_t>(i);
  return t;
}

template <int Size>
__device__ void share(const Thresholds<Size>& book, Thresholds<Size>& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < Size; i += static_cast<int>(blockDim.x)) {
    shared.threshold[i] = book.threshold[i];
    shared.pattern[i] = book.pattern[i];
  }
}

/// Codes of a book by the absmax at row * row_step + col / block.
template <int Size>
struct EncodeBook {
  using Shared = Thresholds<Size>;
  Thresholds<Size> book;
  const float* absmax;
  int64_t row_step;
  int64_t block;

  struct Cursor {
    const EncodeBook& encoder;
    int64_t index;
    int64_t left;  // columns of the block under way
    BlockNormaliser normaliser;

    __device__ uint32_t next(const Shared& shared, float w) {
      if (left == 0) {
        ++index;
        left = encoder.block;
        normaliser = BlockNormaliser(simt::load(encoder.absmax + index));
      }
      --left;
      return shared.pattern[rank_among(shared.threshold, normaliser.normalised(w))];
    }
  };

  __device__ void prepare(Shared& shared) const {
    share(book, shared);
    __syncthreads();  // the book is there for all
  }
  __device__ Cursor at(const Shared&, const Walk&, int64_t row, int64_t col) const {
    const int64_t index = row * row_step + col / block;
    return {*this, index, block - col % block, BlockNormaliser(simt::load(absmax + index))};
  }
};

/// The weight as rows whose blocks and words end with them, if there are such: one row where it is
/// contiguous; else it is walked across its rows.
Segments blocks_of(const ConstMatrix& w, const CodebookScheme& scheme) {
  const int64_t count = w.rows * w.cols;
  const bool contiguous = (w.cols == 1 || w.col_stride == 1) && (w.rows == 1 || w.row_stride == w.cols);
  const int64_t row_bits = w.cols * bits_of(scheme.book);
  Walk walk{};
  walk.w = w;
  if (!contiguous && w.cols % scheme.block_size == 0 && row_bits % 32 == 0)
    return {walk, w.rows, w.cols, scheme.block_size, w.cols / scheme.block_size};
  if (contiguous)
    walk.w = {w.data, w.dtype, 1, count, count, 1};
  else
    walk.across = true;
  return {walk, 1, count, scheme.block_size, (count + scheme.block_size - 1) / scheme.block_size};
}

template <int Size>
void encode(simt::Stream stream, const Segments& blocks, const BitRows& to, const Thresholds<Size>& book,
            const float* absmax) {
  launch_pack(stream, blocks.walk, to, EncodeBook<Size>{book, absmax, blocks.per_row, blocks.length});
}

/// cascade_mean of `count` values; 0 of none.
__global__ void __launch_bounds__(32) cascade_mean_of(const float* values, int64_t count, float* mean) {
  const int64_t vectors = count / 8;
  const int64_t rows = vectors / 4;
  const int lane = static_cast<int>(threadIdx.x);
  float sum = cascade_sum(values, rows);
  // What is left of whole vectors belongs to the first accumulator, to which the others are added in turn.
  for (int64_t v = rows * 4; v < vectors; ++v)
    if (lane < 8) sum += simt::load(values + v * 8 + lane);
  float total = sum;
  for (int k = 1; k < 4; ++k) total += __shfl_sync(~0u, sum, k * 8 + lane % 8);
  float all = 0;
  for (int64_t i = vectors * 8; i < count; ++i) all += simt::load(values + i);
  for (int k = 0; k < 8; ++k) all += __shfl_sync(~0u, total, k);
  if (lane == 0) simt::store(mean, count == 0 ? 0.0f : all / static_cast<float>(count));
}

constexpr int kNestedThreads = 256;
static_assert(kNestedThreads == kNestedBlock);

struct NestShared {
  Thresholds<256> book;
  float of_warp[kNestedThreads / 32];
};

/// A nested block of absmax values less their mean, in 8 bits of the dynamic map.
__global__ void __launch_bounds__(kNestedThreads)
    nest_absmax(const float* absmax, const float* offset, int64_t blocks,
                const __grid_constant__ Thresholds<256> book, uint8_t* codes, float* scales) {
  auto& shared = simt::shared<NestShared>();
  share(book, shared.book);
  const float mean = simt::load(offset);
  const int64_t i = int64_t{blockIdx.x} * kNestedBlock + threadIdx.x;
  const float centred = i < blocks ? simt::load(absmax + i) - mean : 0.0f;
  float most = fabsf(centred);
  for (int apart = 16; apart > 0; apart /= 2) {
    const float other = __shfl_xor_sync(~0u, most, apart);
    most = other > most ? other : most;
  }
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = most;
  __syncthreads();  // every warp's absmax is there, and the book
  for (const float other : shared.of_warp) most = other > most ? other : most;
  if (threadIdx.x == 0) simt::store(scales + blockIdx.x, most);
  if (i < blocks)
    simt::store(codes + i, static_cast<uint8_t>(
                               rank_among(shared.book.threshold, BlockNormaliser(most).normalised(centred))));
}

constexpr int kThreads = 256;

struct MapShared {
  float map[256];
};

__global__ void __launch_bounds__(kThreads)
    decode_nested(const uint8_t* codes, const float* scales, const float* offset, int64_t blocks,
                  const __grid_constant__ MapShared map, float* absmax) {
  auto& shared = simt::shared<MapShared>();
  shared.map[threadIdx.x] = map.map[threadIdx.x];
  __syncthreads();  // the map is there for all
  const float mean = simt::load(offset);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < blocks; i += stride)
    simt::store(absmax + i, shared.map[simt::load(codes + i)] * simt::load(scales + i / kNestedBlock) + mean);
}

}  // namespace

int64_t quantize_codebook_workspace(const CodebookScheme& scheme, int64_t out, int64_t in) {
  const CodebookScheme fitted = checked(scheme, out * in);
  return CallRoom::bytes(fitted.double_quant ? block_count(fitted, out, in) * 4 : 0);
}

void quantize_codebook_cuda(const QuantizeCall& call, const CodebookScheme& given, const CodebookStored& to) {
  const auto stream = static_cast<simt::Stream>(call.stream);
  const CallRoom room(call.workspace);
  const ConstMatrix& w = call.w;
  const CodebookScheme scheme = checked(given, w.rows * w.cols);
  const Segments blocks = blocks_of(w, scheme);
  float* const absmax = scheme.double_quant ? room.floats() : to.absmax;
  launch_fit(stream, blocks, FitAbsmax{absmax}, room.verdict);
  const int bits = bits_of(scheme.book);
  const BitRows rows = bit_rows(to.packed, bits, blocks.rows, blocks.row_length);
  if (bits == 8)
    encode(stream, blocks, rows, dynamic_thresholds(), absmax);
  else
    encode(stream, blocks, rows, thresholds_of(table_of(scheme.book)), absmax);
  if (scheme.double_quant) {
    const int64_t count = blocks.count();
    simt::launch(cascade_mean_of, dim3(1), dim3(32), 0, stream, static_cast<const float*>(absmax), count,
                 to.absmax_offset);
    if (count > 0)
      simt::launch(nest_absmax, dim3(static_cast<unsigned>((count + kNestedBlock - 1) / kNestedBlock)),
                   dim3(kNestedThreads), sizeof(NestShared), stream, static_cast<const float*>(absmax),
                   static_cast<const float*>(to.absmax_offset), count, dynamic_thresholds(), to.absmax_codes,
                   to.absmax_scales);
  }
  const ConstCodebookStored stored{to.packed, to.absmax, to.absmax_codes, to.absmax_scales, to.absmax_offset};
  relative_error_cuda(stream, w, coded_codebook(scheme, stored, w.rows, w.cols), room.errors,
                      call.relative_error);
}

void decode_nested_absmax_cuda(void* stream, const uint8_t* codes, const float* scales, const float* offset,
                               int64_t blocks, float* absmax) {
  if (blocks == 0) return;
  MapShared map{};
  std::copy_n(numerics::kDynamic8.values, 256, map.map);
  simt::launch(decode_nested, cuda::blocks_for(blocks, kThreads), dim3(kThreads), sizeof(MapShared),
               static_cast<simt::Stream>(stream), codes, scales, offset, blocks, map, absmax);
}

}  // namespace quantaria::ops
