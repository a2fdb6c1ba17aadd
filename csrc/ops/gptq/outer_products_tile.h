#pragma once

#include <cstdint>

#include "ops/gptq/outer_products.h"

/// The loops around a tile of sums, for the files that say what a step is: `Step` has Word, Vector, kLanes,
/// kRows and kVectors of a tile, and load, broadcast, zero, multiply_add and add_to.
/// In an unnamed namespace, as each file compiles it for its own instruction set.
namespace quantaria::ops {
namespace {

template <class Step, int vectors, bool fetches>
[[gnu::noinline]] void add_tile(int64_t steps, const typename Step::Word* a, const typename Step::Word* b,
                                [[maybe_unused]] const char* ahead, float* c, int64_t stride) {
  typename Step::Sum sum[Step::kRows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Step::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = Step::zero();
  for (int64_t s = 0; s < steps; ++s, a += kOuterPanel, b += kOuterPanel) {
    if constexpr (fetches) __builtin_prefetch(ahead + s * kAheadBytes, 0, 2);
    typename Step::Vector column[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) column[v] = Step::load(b + v * Step::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Step::kRows; ++r) {
      const typename Step::Vector x = Step::broadcast(a + r);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = Step::multiply_add(x, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Step::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) Step::add_to(c + r * stride + v * Step::kLanes, sum[r][v]);
}

template <class Step>
using AddTile = void(int64_t, const typename Step::Word*, const typename Step::Word*, const char*, float*,
                     int64_t);

/// By the number of vectors - 1. Those past Step::kVectors are never asked for.
template <class Step, bool fetches>
constexpr AddTile<Step>* kAddTile[] = {add_tile<Step, 1, fetches>, add_tile < Step,
                                       Step::kVectors<2 ? 1 : 2, fetches>, add_tile < Step,
                                       Step::kVectors<3 ? 1 : 3, fetches>};

template <class Step>
void add_outer_panel(int64_t steps, const void* a_panel, const void* b_panel, const OuterPart& part,
                     const void* ahead, float* c, int64_t stride) {
  const auto* const a = static_cast<const typename Step::Word*>(a_panel);
  const auto* const b = static_cast<const typename Step::Word*>(b_panel);
  for (int64_t row = 0; row < part.rows; row += Step::kRows) {
    int64_t column = part.upper ? row / Step::kLanes * Step::kLanes : 0;
    while (column < part.columns) {
      const int64_t left = (part.columns - column + Step::kLanes - 1) / Step::kLanes;
      const int64_t vectors = left < Step::kVectors ? left : Step::kVectors;
      AddTile<Step>* const add =
          row == 0 && column == 0 ? kAddTile<Step, true>[vectors - 1] : kAddTile<Step, false>[vectors - 1];
      add(steps, a + row, b + column, static_cast<const char*>(ahead), c + row * stride + column, stride);
      column += vectors * Step::kLanes;
    }
  }
}

}  // namespace
}  // namespace quantaria::ops
