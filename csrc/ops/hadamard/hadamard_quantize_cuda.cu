#include "ops/hadamard/hadamard_quantize_cuda.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/verdict.h"
#include "ops/bitpack/bitpack.h"
#include "ops/hadamard/hadamard.h"
#include "ops/hadamard/transform.cuh"
#include "ops/quantize/int_codes.cuh"
#include "ops/quantize/mx_codes.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = kHadamardThreads;
static_assert(kSharedRow == kMostRotatedColumns);

/// A row in shared memory as encoders walk it.
struct SharedWalk {
  const float* row;
  __device__ float at(int64_t, int64_t col) const { return row[col]; }
  __device__ float seen(float value) const { return value; }
};

/// Groups of `length` columns, `per_row` of them, fitted by Fit and coded by Encoder.
template <class Fit, class Encoder>
struct Quantizer {
  Fit fit;
  Encoder encoder;
  BitRows to;
  int length;
  int per_row;
};

__device__ float rounded_to(DType dtype, float value) {
  if (dtype == DType::float16) return numerics::float_from_half(numerics::half_from_float(value));
  if (dtype == DType::bfloat16) return numerics::float_from_bfloat16(numerics::bfloat16_from_float(value));
  return value;
}

/// A row for each block, which no other memory sees between its load and its codes.
template <int Capacity, bool Based, class Quantizer>
__global__ void __launch_bounds__(kThreads)
    rotate_and_quantize(const __grid_constant__ Transform p,
                        const __grid_constant__ std::conditional_t<Based, BaseSigns, NoSigns> base,
                        const __grid_constant__ Quantizer q, cuda::Verdict* verdict) {
  auto& shared = simt::shared<RowShared<Capacity, Based>>();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  transform_in_shared(p, base, row * p.n, shared,
                      [&](int i, float value) { shared.row[i] = rounded_to(p.y_dtype, value * p.scale); });
  __syncthreads();  // the rotated row is there for all
  for (int group = thread / 32; group < q.per_row; group += kThreads / 32) {
    const int first = group * q.length;
    const int end = first + q.length < p.n ? first + q.length : p.n;
    float low = 0;
    float high = 0;
    for (int i = first + thread % 32; i < end; i += 32) {
      const float value = shared.row[i];
      if (!numerics::is_finite(value)) cuda::refuse(verdict, row * p.n + i);
      low = value < low ? value : low;
      high = value > high ? value : high;
    }
    for (int apart = 16; apart > 0; apart /= 2) {
      const float other_low = __shfl_xor_sync(~0u, low, apart);
      const float other_high = __shfl_xor_sync(~0u, high, apart);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    if (thread % 32 == 0) q.fit.store(row * q.per_row + group, low, high);
  }
  __syncthreads();  // the row's constants are there for all
  const SharedWalk walk{shared.row};
  const typename decltype(q.encoder)::Shared nothing{};
  for (int64_t word = thread; word < q.to.row_words; word += kThreads)
    simt::store(q.to.words + row * q.to.row_words + word,
                packed_word(q.encoder, nothing, walk, q.to, row, word));
}

template <int Capacity, class Quantizer>
void launch_rows(simt::Stream stream, const Transform& p, const Quantizer& q, cuda::Verdict* verdict) {
  const dim3 blocks(static_cast<unsigned>(p.rows));
  if (p.m == 1)
    simt::launch(rotate_and_quantize<Capacity, false, Quantizer>, blocks, dim3(kThreads),
                 sizeof(RowShared<Capacity, false>), stream, p, NoSigns{}, q, verdict);
  else
    simt::launch(rotate_and_quantize<Capacity, true, Quantizer>, blocks, dim3(kThreads),
                 sizeof(RowShared<Capacity, true>), stream, p, signs_of(p.m), q, verdict);
}

template <class Quantizer>
void launch(const HadamardQuantizeCall& call, const Quantizer& q) {
  check_hadamard_size(call.n);
  if (call.n > kMostRotatedColumns)
    fail(ErrorCode::unsupported, "x: rows of ", call.n, ", at most ", kMostRotatedColumns, " expected");
  if (call.rows > 0x7fffffff)
    fail(ErrorCode::unsupported, "x: ", call.rows, " rows, at most 2^31 - 1 expected");
  if (call.rows == 0 || call.n == 0) return;
  const int64_t m = base_order(call.n);
  const Transform transform{call.rows,           static_cast<int>(call.n),
                            static_cast<int>(m), static_cast<int>(call.n / m),
                            call.scale,          call.x,
                            call.dtype,          nullptr,
                            call.dtype};
  const auto stream = static_cast<simt::Stream>(call.stream);
  auto* const verdict = reinterpret_cast<cuda::Verdict*>(call.verdict);
  call.n <= 4096 ? launch_rows<4096>(stream, transform, q, verdict)
                 : launch_rows<kSharedRow>(stream, transform, q, verdict);
}

}  // namespace

void hadamard_quantize_int_cuda(const HadamardQuantizeCall& call, const IntScheme& scheme,
                                const IntStored& to) {
  check_scheme(scheme);
  const bool by_groups = scheme.granularity == Granularity::group;
  if ((!by_groups && scheme.granularity != Granularity::row) || scheme.mse_search)
    fail(ErrorCode::unsupported, "scheme: scales by row or group and no search expected");
  const FitInt fit{int_rule_of(scheme), to.scales, to.zeros};
  const int64_t length = std::min(by_groups ? scheme.group_size : call.n, call.n);
  launch(call, Quantizer<FitInt, EncodeInt>{
                   fit, encode_int(scheme, fit, call.rows, call.n),
                   bit_rows(to.packed, scheme.bits, call.rows, call.n), static_cast<int>(length),
                   static_cast<int>(length > 0 ? (call.n + length - 1) / length : 0)});
}

void hadamard_quantize_mx_cuda(const HadamardQuantizeCall& call, const MxScheme& scheme, uint8_t* packed,
                               uint8_t* scales) {
  if (scheme.pre_scale) fail(ErrorCode::unsupported, "scheme: no factors of rows expected");
  const int64_t blocks = (call.n + kMxBlock - 1) / kMxBlock;
  const MxRule rule = mx_rule_of(scheme);
  launch(call,
         Quantizer<FitMx, EncodeMx>{{rule, nullptr, blocks, scales},
                                    {rule, nullptr, scales, blocks, call.n},
                                    bit_rows(packed, mx_element_bits(scheme.element), call.rows, call.n),
                                    static_cast<int>(kMxBlock),
                                    static_cast<int>(blocks)});
}

}  // namespace quantaria::ops
