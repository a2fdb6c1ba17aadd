
#include "numerics/small_float.h"
#include "ops/bitpack/bitpack.h"
#include "ops/quantize/call_room.h"
#include "ops/quantize/float8_rule.h"
#include "ops/quantize/pack_words.cuh"
#include "ops/quantize/weight.h"

// FP8 and LLM.int8: a constant for each row, or for all.
namespace quantaria::ops {
namespace {

struct FitFp8 {
  float* scales;
  Float8Rule rule;
  __device__ void store(int64_t i, float low, float high) const {
    simt::store(scales + i, float8_scale(rule, -low > high ? -low : high));
  }
};

struct EncodeFp8 {
  using Shared = NothingShared;
  const float* scales;
  int64_t row_step;
  Float8 format;

  struct Cursor {
    float scale;
    Float8 format;
    __device__ uint32_t next(const Shared&, float w) const {
      const float x = w / scale;
      return format == Float8::e4m3 ? numerics::encode_saturating<numerics::kE4M3>(x)
                                    : numerics::encode_saturating<numerics::kE5M2>(x);
    }
  };
  __device__ void prepare(Shared&) const {}
  __device__ Cursor at(const Shared&, const Walk&, int64_t row, int64_t) const {
    return {simt::load(scales + row * row_step), format};
  }
};

struct EncodeLlmInt8 {
  using Shared = NothingShared;
  const float* absmax;

  struct Cursor {
    float factor;
    __device__ uint32_t next(const Shared&, float w) const {
      return (numerics::bits_of(w * factor + numerics::kRoundingMagic) + 128u) & 0xffu;
    }
  };
  __device__ void prepare(Shared&) const {}
  __device__ Cursor at(const Shared&, const Walk&, int64_t row, int64_t) const {
    const float most = simt::load(absmax + row);
    return {most == 0 ? 0.0f : 127.0f / most};
  }
};

Segments rows_of(const Walk& walk) { return {walk, walk.w.rows, walk.w.cols, walk.w.cols, 1}; }

}  // namespace

int64_t quantize_rows_workspace(int64_t out, int64_t in) {
  return CallRoom::bytes(whole_workspace(out, in) * 4);
}

void quantize_fp8_cuda(const QuantizeCall& call, const Fp8Scheme& scheme, uint8_t* packed, float* scales) {
  const auto stream = static_cast<simt::Stream>(call.stream);
  check_scale_dtype(scheme.scale_dtype);
  const CallRoom room(call.workspace);
  const ConstMatrix& w = call.w;
  Walk walk{};
  walk.w = w;
  const FitFp8 fit{scales, float8_rule_of(scheme)};
  if (scheme.per_row)
    launch_fit(stream, rows_of(walk), fit, room.verdict);
  else
    launch_fit_whole(stream, walk, fit, room.floats(), room.verdict);
  launch_pack(stream, walk, bit_rows(packed, 8, w.rows, w.cols),
              EncodeFp8{scales, scheme.per_row ? 1 : 0, scheme.format});
  relative_error_cuda(stream, w, coded_fp8(scheme, packed, scales, w.rows, w.cols), room.errors,
                      call.relative_error);
}

void quantize_llm_int8_cuda(const QuantizeCall& call, uint8_t* packed, float* absmax) {
  const auto stream = static_cast<simt::Stream>(call.stream);
  const CallRoom room(call.workspace);
  const ConstMatrix& w = call.w;
  Walk walk{};
  walk.w = w;
  walk.through_half = true;
  walk.bound = kLlmInt8Bound;
  launch_fit(stream, rows_of(walk), FitAbsmax{absmax}, room.verdict);
  launch_pack(stream, walk, bit_rows(packed, 8, w.rows, w.cols), EncodeLlmInt8{absmax});
  relative_error_cuda(stream, w, coded_llm_int8(packed, absmax, w.rows, w.cols), room.errors,
                      call.relative_error);
}

}  // namespace quantaria::ops
