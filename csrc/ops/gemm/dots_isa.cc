#include "cpu/lanes.h"
#include "ops/gemm/dots.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// Elements as they are stored.
struct Float32 {
  using Element = float;
  static Floats get(const float* from) { return load(from); }
};
struct Float16 {
  using Element = uint16_t;
  static Floats get(const uint16_t* from) { return load_half(from); }
};
struct Bfloat16 {
  using Element = uint16_t;
  static Floats get(const uint16_t* from) { return load_bfloat16(from); }
};

// Columns that share what is loaded of the rows, as many as leave enough registers for their sums.
constexpr int columns_of(int rows) {
  constexpr int kSums = kRegisters == 1 ? 16 : 8 / kRegisters;
  return kSums / rows >= 4 ? 4 : kSums / rows > 1 ? kSums / rows : 1;
}
constexpr int kBytesAhead = 4096;
constexpr int kSecondLevel = 2;  // which can wait for more lines at a time than the first

/// `columns` columns next to each other.
template <class Column, int rows, int columns>
void multiply_columns(const void* const* a, const typename Column::Element* b, int64_t stride, int64_t depth,
                      float* c, int64_t c_stride) {
  using Element = typename Column::Element;
  constexpr int64_t kAhead = kBytesAhead / static_cast<int64_t>(sizeof(Element));
  const auto row = [&](int r) { return static_cast<const float*>(a[r]); };
  Floats sum[rows][columns];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < columns; ++n) sum[r][n] = splat(0.0f);
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    // Past a column's end: from the one that is read next.
    const int64_t ahead = k + kAhead < depth ? k + kAhead : k + kAhead - depth + columns * stride;
#pragma GCC unroll 4
    for (int n = 0; n < columns; ++n) {
      __builtin_prefetch(b + n * stride + ahead, 0, kSecondLevel);
      const Floats value = Column::get(b + n * stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r][n] = multiply_add(load(row(r) + k), value, sum[r][n]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < columns && k < depth; ++n) {
    Element last[kLanes] = {};
    std::memcpy(last, b + n * stride + k, static_cast<size_t>(depth - k) * sizeof(Element));
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) sum[r][n] = multiply_add(load(row(r) + k), Column::get(last), sum[r][n]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < columns; ++n) c[r * c_stride + n] = sum_of(sum[r][n]);
}

template <class Column, int rows>
void multiply(const void* const* a, const std::byte* b, int64_t stride, int64_t depth, int64_t columns,
              float* c, int64_t c_stride) {
  constexpr int kColumns = columns_of(rows);
  const auto* column = reinterpret_cast<const typename Column::Element*>(b);
  int64_t n = 0;
  for (; n + kColumns <= columns; n += kColumns)
    multiply_columns<Column, rows, kColumns>(a, column + n * stride, stride, depth, c + n, c_stride);
  for (; n < columns; ++n)
    multiply_columns<Column, rows, 1>(a, column + n * stride, stride, depth, c + n, c_stride);
}

// Of matrices whose rows are contiguous: lanes of columns side by side, rows that a sum takes at a time while
// it is in a register, and how many rows ahead of their use are asked for, which no hardware guesses.
constexpr int kVectors = kRegisters == 1 ? 2 : 1;
constexpr int kDeep = 4;
constexpr int kRowsAhead = 192;

/// `count` columns next to each other, kVectors * kLanes at most. What is contiguous is spread over the
/// registers' lanes, so that each of the dot products' lanes has sums of its own; they lie in the first-level
/// cache, and a row is touched once.
template <class Column, int rows>
void multiply_strip(const void* const* a, const typename Column::Element* b, int64_t stride, int64_t depth,
                    int64_t count, float* c, int64_t c_stride) {
  using Element = typename Column::Element;
  alignas(64) Floats sum[kLanes][rows][kVectors];
  for (auto& lane : sum)
    for (auto& row : lane)
      for (Floats& part : row) part = splat(0.0f);
  const auto take = [&](int64_t k, int deep, const auto& get) {
    for (int lane = 0; lane < kLanes; ++lane) {
      Floats part[rows][kVectors];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) part[r][v] = sum[lane][r][v];
#pragma GCC unroll 4
      for (int d = 0; d < deep; ++d) {
        const int64_t at = k + d * kLanes + lane;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const Floats value = get(at, v);
#pragma GCC unroll 4
          for (int r = 0; r < rows; ++r)
            part[r][v] = multiply_add(splat(static_cast<const float*>(a[r])[at]), value, part[r][v]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[lane][r][v] = part[r][v];
    }
  };
  int64_t k = 0;
  if (count == kVectors * kLanes)
    for (; k + kDeep * kLanes <= depth; k += kDeep * kLanes)
      take(k, kDeep, [&](int64_t at, int v) {
        // Past the last row: from the strip that is read next.
        const int64_t ahead =
            at + kRowsAhead < depth ? (at + kRowsAhead) * stride : (at + kRowsAhead - depth) * stride + count;
        __builtin_prefetch(b + ahead + v * kLanes, 0, kSecondLevel);
        return Column::get(b + at * stride + v * kLanes);
      });
  for (; k < depth; k += kLanes)
    take(k, 1, [&](int64_t at, int v) {
      const int64_t left = count - v * kLanes;
      if (at >= depth || left <= 0) return splat(0.0f);
      Element some[kLanes] = {};
      std::memcpy(some, b + at * stride + v * kLanes,
                  static_cast<size_t>(left < kLanes ? left : kLanes) * sizeof(Element));
      return Column::get(some);
    });
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v * kLanes < count; ++v) {
      for (int half = kLanes / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) sum[lane][r][v] = sum[lane][r][v] + sum[lane + half][r][v];
      float* const to = c + r * c_stride + v * kLanes;
      const int64_t left = count - v * kLanes;
      left >= kLanes ? store(to, sum[0][r][v]) : store_some(to, sum[0][r][v], left);
    }
}

template <class Column, int rows>
void multiply_rows(const void* const* a, const std::byte* b, int64_t stride, int64_t depth, int64_t columns,
                   float* c, int64_t c_stride) {
  constexpr int kWidth = kVectors * kLanes;
  const auto* const row = reinterpret_cast<const typename Column::Element*>(b);
  for (int64_t n = 0; n < columns; n += kWidth)
    multiply_strip<Column, rows>(a, row + n, stride, depth, columns - n < kWidth ? columns - n : kWidth,
                                 c + n, c_stride);
}

template <class Column>
constexpr void fill(Dots* (&table)[2][kMostDotRows]) {
  Dots* const kernels[2][kMostDotRows] = {
      {multiply<Column, 1>, multiply<Column, 2>, multiply<Column, 3>, multiply<Column, 4>},
      {multiply_rows<Column, 1>, multiply_rows<Column, 2>, multiply_rows<Column, 3>,
       multiply_rows<Column, 4>}};
  for (int layout = 0; layout < 2; ++layout)
    for (int rows = 0; rows < kMostDotRows; ++rows) table[layout][rows] = kernels[layout][rows];
}

constexpr FloatDots kernels() {
  FloatDots dots{};
  fill<Float32>(dots.of_float32);
  fill<Float16>(dots.of_float16);
  fill<Bfloat16>(dots.of_bfloat16);
  return dots;
}

}  // namespace

extern const FloatDots float_dots;
const FloatDots float_dots = kernels();

}  // namespace quantaria::ops::QUANTARIA_ISA
