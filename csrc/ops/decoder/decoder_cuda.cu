#include "ops/decoder/decoder_cuda.h"

#include <cmath>

#include "core/error.h"
#include "cuda/grid.h"
#include "cuda/verdict.h"
#include "ops/copy/cast_value.cuh"
#include "ops/decoder/block_reduce.cuh"
#include "ops/gemm/swiglu.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

/// A block for each row, so that no place in shared memory is used twice.
dim3 blocks_of_rows(int64_t rows) {
  if (rows > 0x7fffffff) fail(ErrorCode::unsupported, rows, " rows, at most 2^31 - 1 expected");
  return dim3(static_cast<unsigned>(rows));
}

__device__ __forceinline__ float at(const ConstMatrix& m, int64_t row, int64_t col) {
  return load_float(m.dtype, m.data, row * m.row_stride + col * m.col_stride);
}

__device__ __forceinline__ void put(const Matrix& m, int64_t row, int64_t col, float value) {
  store_value(m.dtype, m.data, row * m.row_stride + col * m.col_stride, {true, value, 0});
}

/// body(row, column) for each element of y.
template <class Body>
__device__ __forceinline__ void for_elements(const Matrix& y, const Body& body) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < y.rows * y.cols; i += stride)
    body(i / y.cols, i % y.cols);
}

__global__ void __launch_bounds__(kThreads) norm_rows(ConstMatrix x, ConstMatrix gain, float eps, Matrix y) {
  auto& shared = simt::shared<BlockReduction<double, kThreads>>();
  const int64_t t = blockIdx.x;
  double squares = 0;
  for (int64_t i = threadIdx.x; i < x.cols; i += kThreads) {
    const float value = at(x, t, i);
    squares += double{value} * double{value};
  }
  const double mean = sum_block(shared, squares) / static_cast<double>(x.cols) + double{eps};
  const auto factor = static_cast<float>(1.0 / sqrt(mean));
  for (int64_t i = threadIdx.x; i < x.cols; i += kThreads)
    put(y, t, i, at(x, t, i) * factor * at(gain, 0, i));
}

__global__ void __launch_bounds__(kThreads)
    rotate_rows(ConstMatrix x, const float* cosines, const float* sines, Rotary rotary, Matrix y) {
  const int64_t pairs = rotary.dims / 2;
  const int64_t apart = rotary.interleaved ? 1 : pairs;
  for_elements(y, [&](int64_t t, int64_t c) {
    const int64_t i = c % rotary.head_dim - rotary.offset;
    if (i < 0 || i >= rotary.dims) return put(y, t, c, at(x, t, c));
    const int64_t pair = rotary.interleaved ? i / 2 : i % pairs;
    const bool second = rotary.interleaved ? i % 2 == 1 : i >= pairs;
    const int64_t angle = (rotary.first + t % rotary.sequence) * pairs + pair;
    const float cosine = simt::load(cosines + angle);
    const float sine = simt::load(sines + angle);
    const float other = at(x, t, second ? c - apart : c + apart);
    put(y, t, c, second ? at(x, t, c) * cosine + other * sine : at(x, t, c) * cosine - other * sine);
  });
}

__global__ void __launch_bounds__(kThreads)
    embed_rows(ConstMatrix table, const int32_t* ids, cuda::Verdict* verdict, Matrix y) {
  for_elements(y, [&](int64_t t, int64_t c) {
    const int64_t id = simt::load(ids + t);
    const bool there = id >= 0 && id < table.rows;
    if (!there && c == 0) cuda::refuse(verdict, t);
    put(y, t, c, there ? at(table, id, c) : 0.0f);
  });
}

__global__ void __launch_bounds__(kThreads)
    add_rows(ConstMatrix a, ConstMatrix b, ConstMatrix gates, Matrix y) {
  for_elements(y, [&](int64_t t, int64_t c) {
    const float gate = gates.data ? 1.0f / (1.0f + expf(-at(gates, t, 0))) : 1.0f;
    put(y, t, c, at(a, t, c) + gate * at(b, t, c));
  });
}

__global__ void __launch_bounds__(kThreads) swiglu_rows(ConstMatrix gate, ConstMatrix up, Matrix y) {
  for_elements(y, [&](int64_t t, int64_t c) { put(y, t, c, swiglu(at(gate, t, c), at(up, t, c))); });
}

/// Of equal ones the first, as one number: a NaN is none.
__device__ __forceinline__ uint64_t rank_of(float logit, int64_t index) {
  if (logit != logit) return 0;
  const uint32_t bits = simt::bits<uint32_t>(logit == 0 ? 0.0f : logit);
  const uint32_t order = bits ^ ((bits >> 31) != 0 ? ~0u : 0x80000000u);
  return uint64_t{order} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

struct LogitRow {
  float largest;
  uint32_t first;  // where it is
  double sum;      // of exp(x - largest)
};

struct LogitRowShared {
  BlockReduction<uint64_t, kThreads> rank;
  BlockReduction<double, kThreads> sum;
};

struct ScoreShared {
  LogitRowShared model;
  LogitRowShared baseline;
  BlockReduction<double, kThreads> divergence;
  BlockReduction<double, kThreads> error;
  BlockReduction<double, kThreads> reference;
};

__device__ __forceinline__ LogitRow logit_row(LogitRowShared& shared, const float* row, int64_t count) {
  uint64_t best = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t rank = rank_of(simt::load(row + i), i);
    best = rank > best ? rank : best;
  }
  best = reduce_block(shared.rank, best, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  // A row of NaNs has none: its sum is NaN whatever is taken.
  const uint32_t first = best == 0 ? 0 : 0xffffffffu - static_cast<uint32_t>(best);
  const float largest = simt::load(row + first);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += double{expf(simt::load(row + i) - largest)};
  return {largest, first, sum_block(shared.sum, sum)};
}

__global__ void __launch_bounds__(kThreads)
    score_rows(const float* logits, const float* baseline, int64_t vocabulary, const int32_t* targets,
               cuda::Verdict* verdict, TokenScore* scores) {
  auto& shared = simt::shared<ScoreShared>();
  const int64_t t = blockIdx.x;
  const int32_t target = simt::load(targets + t);
  if (target < 0 || target >= vocabulary) {
    if (threadIdx.x == 0) cuda::refuse(verdict, t);
    return;
  }
  const float* const row = logits + t * vocabulary;
  const LogitRow own = logit_row(shared.model, row, vocabulary);
  LogitRow of_other{};
  double weighted = 0;
  double error = 0;
  double reference = 0;
  if (baseline) {
    const float* const other = baseline + t * vocabulary;
    of_other = logit_row(shared.baseline, other, vocabulary);
    for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) {
      const float b = simt::load(other + i);
      const float a = simt::load(row + i);
      const float x = b - of_other.largest;
      weighted += double{expf(x)} * (double{x} - double{a - own.largest});
      error += (double{a} - double{b}) * (double{a} - double{b});
      reference += double{b} * double{b};
    }
    weighted = sum_block(shared.divergence, weighted);
    error = sum_block(shared.error, error);
    reference = sum_block(shared.reference, reference);
  }
  if (threadIdx.x != 0) return;
  const double log_sum = log(own.sum);
  TokenScore score{};
  score.loss = static_cast<float>(log_sum + (double{own.largest} - double{simt::load(row + target)}));
  if (baseline) {
    score.divergence = static_cast<float>(weighted / of_other.sum + (log_sum - log(of_other.sum)));
    score.agree = own.first == of_other.first ? 1.0f : 0.0f;
    score.error = static_cast<float>(error);
    score.reference = static_cast<float>(reference);
  }
  simt::store(scores + t, score);
}

simt::Stream to_stream(void* stream) { return static_cast<simt::Stream>(stream); }

}  // namespace

void rms_norm_cuda(void* stream, const ConstMatrix& x, const ConstMatrix& gain, float eps, const Matrix& y) {
  if (y.rows == 0 || y.cols == 0) return;
  simt::launch(norm_rows, blocks_of_rows(y.rows), dim3(kThreads), sizeof(BlockReduction<double, kThreads>),
               to_stream(stream), x, gain, eps, y);
}

void rotate_cuda(void* stream, const ConstMatrix& x, const float* cosines, const float* sines,
                 const Rotary& rotary, const Matrix& y) {
  simt::launch(rotate_rows, cuda::blocks_for(y.rows * y.cols, kThreads), dim3(kThreads), 0, to_stream(stream),
               x, cosines, sines, rotary, y);
}

void embed_cuda(void* stream, const ConstMatrix& table, const int32_t* ids, std::byte* verdict,
                const Matrix& y) {
  simt::launch(embed_rows, cuda::blocks_for(y.rows * y.cols, kThreads), dim3(kThreads), 0, to_stream(stream),
               table, ids, reinterpret_cast<cuda::Verdict*>(verdict), y);
}

void add_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* gates,
              const Matrix& y) {
  simt::launch(add_rows, cuda::blocks_for(y.rows * y.cols, kThreads), dim3(kThreads), 0, to_stream(stream), a,
               b, gates ? *gates : ConstMatrix{}, y);
}

void swiglu_cuda(void* stream, const ConstMatrix& gate, const ConstMatrix& up, const Matrix& y) {
  simt::launch(swiglu_rows, cuda::blocks_for(y.rows * y.cols, kThreads), dim3(kThreads), 0, to_stream(stream),
               gate, up, y);
}

void score_tokens_cuda(void* stream, const float* logits, const float* baseline, int64_t rows,
                       int64_t vocabulary, const int32_t* targets, std::byte* verdict, TokenScore* scores) {
  if (rows == 0) return;
  simt::launch(score_rows, blocks_of_rows(rows), dim3(kThreads), sizeof(ScoreShared), to_stream(stream),
               logits, baseline, vocabulary, targets, reinterpret_cast<cuda::Verdict*>(verdict), scores);
}

}  // namespace quantaria::ops
