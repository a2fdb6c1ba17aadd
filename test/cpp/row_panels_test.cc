#include "ops/gemm/row_panels.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "check.h"
#include "dequant_matmul_test.h"
#include "numerics/bfloat16.h"
#include "ops/dequant_matmul/kernels.h"

using namespace quantaria;
using namespace quantaria::test;

namespace {

/// Value i of a step's word.
template <class T>
T element(const ops::RowPanels& panels, int64_t tile, int64_t step, int row, int i) {
  T value;
  const std::byte* const word = panels.words(tile) + (step * panels.rows_of(tile) + row) * 4;
  std::memcpy(&value, word + i * static_cast<int>(sizeof value), sizeof value);
  return value;
}

struct Place {
  int64_t tile;
  int row;
};
Place place_of(const ops::RowPanels& panels, int64_t row) {
  int64_t tile = 0;
  while (row >= panels.first_row(tile) + panels.rows_of(tile)) ++tile;
  return {tile, static_cast<int>(row - panels.first_row(tile))};
}

ops::RowPanels packed(const ops::RowFormat& format, const std::vector<float>& x, int64_t rows, int64_t in) {
  ops::RowPanels panels(
      format,
      {{reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, in, in, 1}, nullptr, rows});
  for (int64_t tile = 0; tile < panels.tiles(); ++tile) panels.pack(tile);
  return panels;
}

}  // namespace

TEST(
    "int8 rows are the nearest codes of each group's scale, in the order asked for, beside the sums of "
    "codes") {
  on_each_isa([](Isa) {
    for (const int bits : {2, 3, 4, 5, 8})
      for (const int64_t in : {1, 7, 32, 70, 96})
        for (const int64_t group : {int64_t{32}, in})
          for (const auto& [rows, tile_rows] :
               {std::pair{1, 4}, std::pair{3, 4}, std::pair{13, 4}, std::pair{16, 16}, std::pair{18, 16}}) {
            const std::vector<float> x = random_activations(rows, in, 5);
            ops::RowFormat format;
            format.operand = ops::Operand::int8;
            format.tile_rows = tile_rows;
            format.order = ops::byte_order(bits);
            format.group = group;
            const ops::RowPanels panels = packed(format, x, rows, in);
            CHECK_EQ(panels.groups(), group >= in ? 1 : (in + group - 1) / group);
            const int64_t length = 4 * panels.steps_per_group();
            const int unit = format.order.unit;
            for (int64_t r = 0; r < rows; ++r) {
              const auto [tile, row] = place_of(panels, r);
              for (int64_t g = 0; g < panels.groups(); ++g) {
                const auto at = static_cast<size_t>(g * panels.rows_of(tile) + row);
                float absmax = 0;
                for (int64_t c = g * length; c < std::min(in, (g + 1) * length); ++c)
                  absmax = std::max(absmax, std::fabs(x[static_cast<size_t>(r * in + c)]));
                CHECK_EQ(panels.scales(tile)[at], absmax / 127.0f);
                int sum = 0;
                for (int64_t i = g * length; i < (g + 1) * length; ++i) {
                  const int64_t column = i / unit * unit + format.order.at[static_cast<size_t>(i % unit)];
                  const double value = column < in ? double{x[static_cast<size_t>(r * in + column)]} : 0;
                  const int code = element<int8_t>(panels, tile, i / 4, row, static_cast<int>(i % 4));
                  sum += code;
                  // Half a step, and a little for the rounding of the quotient before that of the code.
                  CHECK(std::fabs(code - value / (double{absmax} / 127)) <= 0.5 + 1e-4);
                }
                CHECK_EQ(panels.sums(tile)[at], static_cast<float>(sum));
              }
            }
          }
  });
}

TEST("bfloat16 rows are rounded to it, in the order asked for, beside the sums of what they became") {
  on_each_isa([](Isa) {
    for (const int bits : {2, 4, 8})
      for (const int64_t in : {1, 3, 32, 70})
        for (const int64_t group : {int64_t{32}, in}) {
          const int64_t rows = 5;
          const std::vector<float> x = random_activations(rows, in, 6);
          ops::RowFormat format;
          format.operand = ops::Operand::bfloat16;
          format.tile_rows = 2;
          format.order = ops::pair_order(ops::Decoding::permutation, bits);
          format.multiple = ops::unit_codes(bits);
          format.group = group;
          const ops::RowPanels panels = packed(format, x, rows, in);
          CHECK_EQ(panels.groups(), group >= in ? 1 : (in + group - 1) / group);
          const int64_t length = 2 * panels.steps_per_group();
          const int unit = format.order.unit;
          for (int64_t r = 0; r < rows; ++r) {
            const auto [tile, row] = place_of(panels, r);
            for (int64_t g = 0; g < panels.groups(); ++g) {
              double sum = 0;
              for (int64_t i = g * length; i < (g + 1) * length; ++i) {
                const int64_t column =
                    unit == 1 ? i : i / unit * unit + format.order.at[static_cast<size_t>(i % unit)];
                const float value = column < in ? x[static_cast<size_t>(r * in + column)] : 0;
                const uint16_t found = element<uint16_t>(panels, tile, i / 2, row, static_cast<int>(i % 2));
                CHECK_EQ(found, numerics::bfloat16_from_float(value));
                sum += double{numerics::float_from_bfloat16(found)};
              }
              const auto at = static_cast<size_t>(g * panels.rows_of(tile) + row);
              CHECK(std::fabs(double{panels.sums(tile)[at]} - sum) <= 1e-5 * static_cast<double>(length));
            }
          }
        }
  });
}
