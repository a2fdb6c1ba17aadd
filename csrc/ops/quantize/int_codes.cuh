#pragma once

#include "ops/quantize/int_grid.cuh"
#include "ops/quantize/pack_words.cuh"

/// Integers on uniform grids: how groups are fitted, and what their codes are.
namespace quantaria::ops {

/// Scales and zero points of a scheme.
struct FitInt {
  IntRule rule;
  float* scales;
  int32_t* zeros;  // or null

  __device__ void put(int64_t i, const AffineGrid& grid) const {
    simt::store(scales + i, grid.scale);
    if (zeros) simt::store(zeros + i, static_cast<int32_t>(grid.zero));
  }
  __device__ void store(int64_t i, float low, float high) const { put(i, fit_int(rule, low, high)); }
};

/// Codes by the constants at row * row_step + col / group.
struct EncodeInt {
  using Shared = NothingShared;
  IntRule rule;
  const float* scales;
  const int32_t* zeros;
  int64_t row_step;
  int64_t group;
  uint32_t mask;

  struct Cursor {
    const EncodeInt& encoder;
    int64_t constant;
    int64_t left;  // columns of the group under way
    GridCoder coder;

    __device__ uint32_t next(const Shared&, float w) {
      if (left == 0) {
        ++constant;
        left = encoder.group;
        coder = encoder.coder_of(constant);
      }
      --left;
      return coder.code(w) & encoder.mask;
    }
  };

  __device__ void prepare(Shared&) const {}
  __device__ GridCoder coder_of(int64_t constant) const {
    const float zero = zeros ? static_cast<float>(simt::load(zeros + constant)) : 0.0f;
    return {rule, simt::load(scales + constant), zero};
  }
  template <class Rows>
  __device__ Cursor at(const Shared&, const Rows&, int64_t row, int64_t col) const {
    const int64_t constant = row * row_step + col / group;
    return {*this, constant, group - col % group, coder_of(constant)};
  }
};

/// Codes of a weight with `in` columns.
inline EncodeInt encode_int(const IntScheme& scheme, const FitInt& fit, int64_t out, int64_t in) {
  const ConstantsShape constants = constants_shape(scheme, out, in);
  return {fit.rule,
          fit.scales,
          fit.zeros,
          constants.rows == 1 ? 0 : constants.cols,
          scheme.granularity == Granularity::column ? 1 : group_length(scheme, in),
          scheme.bits == 16 ? 0xffffu : (1u << scheme.bits) - 1};
}

}  // namespace quantaria::ops
