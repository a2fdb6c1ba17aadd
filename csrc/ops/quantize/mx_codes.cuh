#pragma once

#include "ops/quantize/mx_element.cuh"
#include "ops/quantize/mx_factors.h"
#include "ops/quantize/pack_words.cuh"

/// MX blocks: how their scales are found, and what the codes are.
namespace quantaria::ops {

/// A scheme as kernels take it.
struct MxRule {
  MxElement element;
  MxRounding rounding;
  int max_exponent;
};

/// Scales of blocks; `segment` counts them row by row.
struct FitMx {
  MxRule rule;
  const float* factors;  // of rows, or null
  int64_t per_row;
  uint8_t* scales;
  __device__ void store(int64_t segment, float low, float high) const {
    float absmax = -low > high ? -low : high;
    if (factors) absmax *= simt::load(factors + segment / per_row);
    simt::store(scales + segment, numerics::e8m0_of_absmax(absmax, rule.max_exponent));
  }
};

struct EncodeMx {
  using Shared = NothingShared;
  MxRule rule;
  const float* factors;  // of rows, or null
  const uint8_t* scales;
  int64_t blocks;
  int64_t cols;

  template <class Rows>
  struct Cursor {
    const EncodeMx& encoder;
    const Rows& walk;
    int64_t row;
    int64_t col;
    float factor;
    float inverse;
    bool zeros;

    __device__ Cursor(const EncodeMx& e, const Rows& w, int64_t r, int64_t c)
        : encoder(e), walk(w), row(r), col(c), factor(e.factors ? simt::load(e.factors + r) : 1.0f) {
      begin();
    }
    __device__ void begin() {
      const uint8_t scale = simt::load(encoder.scales + row * encoder.blocks + col / kMxBlock);
      inverse = numerics::inverse_of_e8m0(scale);
      // Blocks of zeros have codes 0, without the signs; their scale does not tell them from others of tiny
      // values.
      zeros = scale == 0 && all_zero();
    }
    __device__ bool all_zero() const {
      const int64_t first = col / kMxBlock * kMxBlock;
      const int64_t end = first + kMxBlock < encoder.cols ? first + kMxBlock : encoder.cols;
      for (int64_t c = first; c < end; ++c)
        if (walk.at(row, c) * factor != 0) return false;
      return true;
    }
    __device__ uint32_t next(const Shared&, float w) {
      if (col % kMxBlock == 0) begin();
      ++col;
      if (zeros) return 0;
      return encode_mx_element(encoder.rule.element, encoder.rule.rounding, w * factor * inverse);
    }
  };
  __device__ void prepare(Shared&) const {}
  template <class Rows>
  __device__ Cursor<Rows> at(const Shared&, const Rows& walk, int64_t row, int64_t col) const {
    return {*this, walk, row, col};
  }
};

inline MxRule mx_rule_of(const MxScheme& scheme) {
  return {scheme.element, scheme.rounding, mx_max_exponent(scheme.element)};
}

}  // namespace quantaria::ops
