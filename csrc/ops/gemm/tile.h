#pragma once

#include <cstdint>

/// The micro-kernels of all products: a tile of C, kept in registers, gathers
///   C[r][c] (+)= sum_s A[s][r] * B[s][c]
/// over steps s of the reduced dimension. A and B lie in panels, packed so that a step's operands are
/// contiguous: each value of A is broadcast against whole vectors of B. A step is one 32-bit word of each row
/// and column and holds as many values as the operand's type fits into it.
namespace quantaria::ops {

/// What the factors of a product are stored as in panels, and how many lie in a step.
enum class Operand : uint8_t { float32, bfloat16, int8 };
constexpr int values_per_step(Operand operand) {
  return operand == Operand::float32 ? 1 : operand == Operand::bfloat16 ? 2 : 4;
}

inline constexpr int kMostTileRows = 12;

/// Tiles of float32 sums.
struct FloatTiles {
  Operand operand;
  int rows;     // of a tile, at most
  int columns;  // of a panel of B, and the row length of C
  /// Indexed by the tile's rows - 1. a: [steps][tile rows], b: [steps][columns], c: [tile rows][columns].
  void (*multiply[kMostTileRows])(int64_t steps, const void* a, const void* b, float* c, bool accumulate);
};

/// One group of columns after the other: int32 sums inside a group, scaled and added up in float32.
struct GroupedInt8 {
  int64_t groups;
  int64_t steps_per_group;
  const float* a_scales;  // [groups][tile rows]
  const float* a_sums;    // [groups][tile rows], sums of a's values in the group
  const float* b_scales;  // [groups][columns]
  const float* b_zeros;   // [groups][columns], or null: `zero` for all
  int32_t zero;           // a column stands for (b - zero) * scale
};

/// Tiles of integer products. a: int8, b: uint8, a word of four each.
struct Int8Tiles {
  int rows;
  int columns;
  /// c (+)= sum_g a_scale b_scale (sum_s a b - b_zero a_sum)
  void (*multiply[kMostTileRows])(const GroupedInt8& groups, const void* a, const void* b, float* c,
                                  bool accumulate);
};

/// Those of selected_isa().
const FloatTiles& float32_tiles();
/// Without instructions for bfloat16 its operands are float32 that hold rounded values.
const FloatTiles& bfloat16_tiles();
const Int8Tiles& int8_tiles();

}  // namespace quantaria::ops
