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

inline constexpr int kMostTileRows = 16;

/// Tiles of float32 sums.
struct FloatTiles {
  Operand operand;
  int rows;     // of a tile, at most
  int columns;  // of a panel of B, and the row length of C
  /// Indexed by the tile's rows - 1. a: [steps][tile rows], b: [steps][columns], c: [tile rows][columns].
  void (*multiply[kMostTileRows])(int64_t steps, const void* a, const void* b, float* c, bool accumulate);
};

/// Those of selected_isa().
const FloatTiles& float32_tiles();
/// Without instructions for bfloat16 its operands are float32 that hold rounded values.
const FloatTiles& bfloat16_tiles();

}  // namespace quantaria::ops
