#include "ops/dequant_matmul/coded_weight.h"

#include <algorithm>

#include "numerics/e8m0.h"
#include "ops/copy/convert.h"
#include "ops/quantize/quantize.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// [n][rows] to [n][16], the last row repeated.
template <class T>
void widen(const T* from, int64_t n, int64_t rows, T* to) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t r = 0; r < kTileRows; ++r) to[i * kTileRows + r] = from[i * rows + std::min(r, rows - 1)];
}

/// Scales that do not lie in tiles.
void make_scales(const CodedWeight& w, int64_t first, int64_t rows, float* to) {
  const GroupScales& s = w.scales;
  const int64_t groups = w.groups();
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

ScaleType type_of(DType dtype) {
  if (dtype == DType::float16) return ScaleType::float16;
  return dtype == DType::bfloat16 ? ScaleType::bfloat16 : ScaleType::float32;
}

}  // namespace

const std::byte* scales_of_tile(const CodedWeight& w, int64_t tile) {
  return reinterpret_cast<const std::byte*>(w.scales.floats) +
         tile * kTileRows * w.groups() * size_of(w.scales.dtype);
}

TileView view_of(const CodedWeight& w, int64_t tile, int place) {
  const int64_t first = tile * kTileRows;
  const int64_t rows = std::min<int64_t>(kTileRows, w.out - first);
  const int64_t groups = w.groups();
  const int64_t unit = unit_words(w.bits);
  const int64_t padded = (w.words_per_row + unit - 1) / unit * unit;
  const bool full = rows == kTileRows;
  const bool tiled = w.scales.form == GroupScales::Form::tiled;
  TileView view{w.words + first * w.words_per_row, tiled ? scales_of_tile(w, tile) : nullptr,
                tiled && w.zeros != nullptr ? w.zeros + first * groups : nullptr, type_of(w.scales.dtype)};

  float* memory =
      thread_buffer<float>(place == 0 ? Slot::constants : Slot::flat, (3 * groups + padded) * kTileRows);
  const auto take = [&](int64_t count) {
    float* const taken = memory;
    memory += count * kTileRows;
    return taken;
  };
  if (!tiled || !full || w.scales.divisor != 1) {
    float* const scales = take(groups);
    if (tiled) {
      float* const as_they_lie = take(groups);
      convert_row(w.scales.dtype, scales_of_tile(w, tile), DType::float32,
                  reinterpret_cast<std::byte*>(as_they_lie), groups * rows);
      widen(as_they_lie, groups, rows, scales);
    } else {
      make_scales(w, first, rows, scales);
    }
    if (w.scales.divisor != 1)
      for (int64_t i = 0; i < groups * kTileRows; ++i) scales[i] /= w.scales.divisor;
    view.scales = scales;
    view.scale_type = ScaleType::float32;
  }
  if (w.zeros != nullptr && (!tiled || !full)) {
    auto* const zeros = reinterpret_cast<int32_t*>(take(groups));
    if (tiled)
      widen(view.zeros, groups, rows, zeros);
    else
      std::fill_n(zeros, groups * kTileRows, w.zeros[0]);
    view.zeros = zeros;
  }
  if (!full || padded != w.words_per_row) {
    auto* const words = reinterpret_cast<uint32_t*>(take(padded));
    widen(view.words, w.words_per_row, rows, words);
    std::fill(words + w.words_per_row * kTileRows, words + padded * kTileRows, 0u);
    view.words = words;
  }
  return view;
}

}  // namespace quantaria::ops
