#pragma once

#include "ops/dequant_matmul/int8_fetch.cuh"
#include "ops/dequant_matmul/int8_operands.cuh"

/// A group's int32 sums to float32, with its scales and zero points: the steps of the CPU (byte_rows.h).
namespace quantaria::ops {

/// Of a row of activations: the scale, and the sum of codes, 0 where there are no zero points.
struct LeftConstant {
  float scale;
  int32_t sum;
};
/// Of two neighbouring columns of the result.
struct RightConstant {
  float scale[2];
  int32_t zero[2];
};

/// What of a group's sum has to be scaled, of any group: the sum is of codes less 2^(bits - 1).
template <int Bits>
struct PlainSum {
  bool with_zeros;
  int middle;

  __device__ __forceinline__ float operator()(int32_t sum, int32_t of_row, int32_t zero) const {
    const int32_t whole = sum >> kCodeShift<Bits>;
    if (!with_zeros) return static_cast<float>(whole);
    return fmaf(-static_cast<float>(zero), static_cast<float>(of_row),
                static_cast<float>(whole + middle * of_row));
  }
};

/// The same for sums that begin at the bits of 1.5 * 2^23 and stay within 2^22 of it, as those of 128
/// products do: as a float they are that number and the sum, so no conversion is needed, which an A100 has
/// few units for. What is below 2^24 is exact in float32 too.
inline constexpr int32_t kSumStart = 0x4b400000;
template <int Bits, bool WithZeros>
struct ShortSum {
  __device__ __forceinline__ float operator()(int32_t sum, int32_t of_row, int32_t zero) const {
    constexpr float kUnit = 1.0f / (1 << kCodeShift<Bits>);
    constexpr float kStart = 12582912.0f;
    const float whole = fmaf(simt::bits<float>(sum), kUnit, -kStart * kUnit);
    if constexpr (!WithZeros) return whole;
    const auto row = static_cast<float>(of_row);
    return fmaf(-static_cast<float>(zero), row, fmaf(1 << (Bits - 1), row, whole));
  }
};

/// total += a group's sums. left(row), right(col): its constants, of the tile's rows and pairs of columns.
template <class Tile, class Plain, class Left, class Right>
__device__ __forceinline__ void add_group(const WarpPlace<Tile>& warp, const Plain& plain, const Left& left,
                                          const Right& right,
                                          const int32_t (&sum)[Tile::kRows][Tile::kCols][4],
                                          float (&total)[Tile::kRows][Tile::kCols][4]) {
  RightConstant of_cols[Tile::kCols];
#pragma unroll
  for (int j = 0; j < Tile::kCols; ++j) of_cols[j] = right(warp.col + j * 8 + warp.t * 2);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const LeftConstant of_row = left(warp.row + i * 16 + half * 8 + warp.g);
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& added = total[i][j][half * 2 + e];
          const float unscaled = plain(sum[i][j][half * 2 + e], of_row.sum, of_cols[j].zero[e]);
          added = fmaf(unscaled * of_row.scale, of_cols[j].scale[e], added);
        }
    }
}

/// Of the one group, whose constants are where they are stored.
template <class Tile, class Plain>
__device__ __forceinline__ void add_whole(const Int8Product& p, const TileFactors<Tile>& factors,
                                          const WarpPlace<Tile>& warp, const Plain& plain,
                                          const int32_t (&sum)[Tile::kRows][Tile::kCols][4],
                                          float (&total)[Tile::kRows][Tile::kCols][4]) {
  const CodedMatrix& m = p.weight.matrix;
  const float x_divisor = p.rows.scale_divisor;
  const bool some = p.steps.steps > 0;  // without columns there is no group either
  const auto left = [&](int r) -> LeftConstant {
    if (!some) return {};
    const int64_t row = factors.left[r] < 0 ? 0 : factors.left[r];
    const float scale = simt::load(p.rows.scales + row);
    return {x_divisor == 1 ? scale : scale / x_divisor, plain.with_zeros ? simt::load(p.rows.sums + row) : 0};
  };
  const auto right = [&](int n) -> RightConstant {
    RightConstant constant{};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (!some) continue;
      const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n + e);
      const CodedSource& source = factors.right[column.factor];
      const int64_t at = row_within(m, factors.place.col0 + column.col) * m.row_step;
      const float scale = simt::load(source.floats + at);
      constant.scale[e] = m.divisor == 1 ? scale : scale / m.divisor;
      if (plain.with_zeros) constant.zero[e] = simt::load(source.zeros + at);
    }
    return constant;
  };
  add_group(warp, plain, left, right, sum, total);
}

/// Of a group of a step. Scales of several groups are never kept over a divisor.
template <class Tile, class Groups, class Plain>
__device__ __forceinline__ void add_group_of_step(const Int8Constants<Tile, Groups>& constants, int group,
                                                  const WarpPlace<Tile>& warp, bool with_zeros,
                                                  const Plain& plain,
                                                  const int32_t (&sum)[Tile::kRows][Tile::kCols][4],
                                                  float (&total)[Tile::kRows][Tile::kCols][4]) {
  const auto left = [&](int r) -> LeftConstant {
    return {constants.x_scale(group, r), with_zeros ? constants.x_sum(group, r) : 0};
  };
  const auto right = [&](int n) -> RightConstant {
    const auto scales = simt::load_shared<uint2>(constants.scale(group, n));
    RightConstant constant{{simt::bits<float>(scales.x), simt::bits<float>(scales.y)}, {}};
    if (with_zeros) {
      const auto zeros = simt::load_shared<uint2>(constants.zero(group, n));
      constant.zero[0] = static_cast<int32_t>(zeros.x);
      constant.zero[1] = static_cast<int32_t>(zeros.y);
    }
    return constant;
  };
  add_group(warp, plain, left, right, sum, total);
}

}  // namespace quantaria::ops
