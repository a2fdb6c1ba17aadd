#include "ops/dequant_matmul/coded_weight.h"

#include <algorithm>
#include <bit>

#include "numerics/e8m0.h"
#include "ops/gemm/pack.h"
#include "ops/quantize/quantize.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Constants [out][groups] of a tile's rows, as they lie, to [groups][16].
template <class T>
void interleave(const T* constants, int64_t groups, int64_t first, int64_t rows, void* to) {
  const uint32_t* row[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r)
    row[r] = reinterpret_cast<const uint32_t*>(constants + (first + std::min(r, rows - 1)) * groups);
  pack_kernels().interleave(row, groups, static_cast<uint32_t*>(to), kTileRows);
}

void make_scales(const CodedWeight& w, int64_t tile, int64_t rows, float* to) {
  const GroupScales& s = w.scales;
  const int64_t groups = w.groups();
  const int64_t first = tile * kTileRows;
  if (s.form == GroupScales::Form::grouped) return interleave(s.floats, groups, first, rows, to);
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t row = first + std::min(r, rows - 1);
    if (s.form == GroupScales::Form::per_tensor) {
      for (int64_t g = 0; g < groups; ++g) to[g * kTileRows + r] = s.floats[0];
    } else if (s.form == GroupScales::Form::e8m0) {
      const float divisor = s.row_divisors == nullptr ? 1.0f : s.row_divisors[row];
      for (int64_t g = 0; g < groups; ++g)
        to[g * kTileRows + r] = numerics::float_from_e8m0(s.bytes[row * groups + g]) / divisor;
    } else {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t block = row * groups + g;
        to[g * kTileRows + r] = s.map[s.bytes[block]] * s.floats[block / kNestedBlock] + s.offset;
      }
    }
  }
}

}  // namespace

TileView view_of(const CodedWeight& w, int64_t tile, int place) {
  const int64_t first = tile * kTileRows;
  const int64_t rows = std::min<int64_t>(kTileRows, w.out - first);
  const int64_t constants = w.groups() * kTileRows;
  const int64_t unit = unit_words(w.bits);
  const int64_t padded = (w.words_per_row + unit - 1) / unit * unit;
  const bool as_it_lies = rows == kTileRows && padded == w.words_per_row;
  auto* const memory = thread_buffer<float>(place == 0 ? Slot::constants : Slot::flat,
                                            2 * constants + (as_it_lies ? 0 : padded * kTileRows));
  TileView view{w.words + first * w.words_per_row, memory, nullptr};
  make_scales(w, tile, rows, memory);
  if (w.zeros != nullptr) {
    float* const zeros = memory + constants;
    view.zeros = zeros;
    if (w.scales.form == GroupScales::Form::grouped) {
      interleave(w.zeros, w.groups(), first, rows, zeros);
      for (int64_t i = 0; i < constants; ++i) zeros[i] = static_cast<float>(std::bit_cast<int32_t>(zeros[i]));
    } else {
      std::fill_n(zeros, constants, static_cast<float>(w.zeros[0]));
    }
  }
  if (!as_it_lies) {
    auto* const words = reinterpret_cast<uint32_t*>(memory + 2 * constants);
    for (int64_t i = 0; i < w.words_per_row; ++i)
      for (int64_t r = 0; r < kTileRows; ++r)
        words[i * kTileRows + r] = view.words[i * rows + std::min(r, rows - 1)];
    std::fill(words + w.words_per_row * kTileRows, words + padded * kTileRows, 0u);
    view.words = words;
  }
  return view;
}

}  // namespace quantaria::ops
