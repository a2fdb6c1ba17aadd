#pragma once

#include <cstdint>

#include "ops/gemm/tile.h"

/// The inner loop of x^T x. The states of some rows lie in panels of 48 columns, one step after the other:
/// [step][48] words, in the form that a factor of a product has (ops/gemm/tile.h). A panel is left factor as
/// it is right factor, so states are packed once.
namespace quantaria::ops {

/// Whole tiles of every instruction set, each way: 6 by 8 rows, 3 by 16 columns; 8 by 6; 24 by 2.
inline constexpr int64_t kOuterPanel = 48;

/// Asked for from memory at each step of a call: a line of the caches.
inline constexpr int64_t kAheadBytes = 64;

/// What is wanted of the products of two panels: those of the first `rows` columns of a with the first
/// `columns` of b; with `upper`, which a panel times itself allows, at least what is on or above the
/// diagonal.
struct OuterPart {
  int64_t rows;
  int64_t columns;
  bool upper;
};

struct OuterProducts {
  Operand operand;
  /// c += a^T b, [48, 48], rows of c `stride` apart; written to whole tiles around the wanted part. On the
  /// way kAheadBytes a step are asked for from `ahead`, which calls that follow will read.
  void (*add)(int64_t steps, const void* a, const void* b, const OuterPart& part, const void* ahead, float* c,
              int64_t stride);
  /// to += from, n sums.
  void (*add_sums)(const float* from, int64_t n, float* to);
};

/// Those of selected_isa().
const OuterProducts& float32_outer_products();
/// Of bfloat16 pairs; null without instructions for them.
const OuterProducts* bfloat16_outer_products();

}  // namespace quantaria::ops
