#include "ops/dequant_matmul/dequant_matmul_cuda.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/dequant_matmul/coded_call.cuh"
#include "ops/dequant_matmul/group_order_cuda.h"
#include "simt/simt.h"

namespace quantaria::ops {
namespace {

bool one_of_16_bits(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

/// Whether the loop of tensor cores reads this weight: whole words a row, scales for whole runs of 32
/// columns, no zero point that 16 bits would round.
bool fits_loop(const CodedMatrix& m) {
  const bool width = m.table_of_integers ? m.bits <= 4 || m.bits == 8 : m.bits == 4 || m.bits == 8;
  return width && !m.flat && !m.index && !m.far_zeros && m.row_bits % 32 == 0 &&
         (m.group % 32 == 0 || m.group >= m.in);
}

ColumnShares shares_of(int64_t rows, const CodedMatrix& m) {
  return with_coded_tile(coded_tile_rows(rows), [&](auto tile) {
    using Tile = decltype(tile);
    constexpr int64_t kLeastSteps = Tile::kStages + 1;
    const int64_t tiles =
        (rows + Tile::kTileRows - 1) / Tile::kTileRows * ((m.out + Tile::kTileCols - 1) / Tile::kTileCols);
    return column_shares<Tile::kBlocks>(tiles, Tile::kTileRows * Tile::kTileCols,
                                        (m.in + Tile::kStep - 1) / Tile::kStep, kLeastSteps);
  });
}

/// Room for activations in the order of the weight's columns.
int64_t ordered_bytes(int64_t rows, const DeviceWeight& weight) {
  constexpr int64_t kAlignment = 16;
  return weight.left_columns ? (rows * weight.matrix.in * 2 + kAlignment - 1) / kAlignment * kAlignment : 0;
}

}  // namespace

float fill_float16_range(DeviceWeight& weight) {
  float most = 0;
  for (int i = 0; i < 1 << weight.matrix.bits; ++i)
    if (std::isfinite(weight.table.values[i])) most = std::max(most, std::abs(weight.table.values[i]));
  if (most == 0) return 1;
  const int exponent = 14 - std::ilogb(most);
  for (float& value : weight.table.values) value = std::ldexp(value, exponent);
  return std::ldexp(1.0f, -exponent);
}

bool on_tensor_cores(DType x, const CodedMatrix& weight, bool rounded) {
  return one_of_16_bits(x) && fits_loop(weight) && (weight.table_of_integers || rounded);
}

int64_t dequant_matmul_workspace(int64_t rows, DType x, const DeviceWeight& weight, bool rounded) {
  const int64_t sums = on_tensor_cores(x, weight.matrix, rounded) ? shares_of(rows, weight.matrix).bytes : 0;
  return ordered_bytes(rows, weight) + sums;
}

void dequant_matmul_cuda(void* stream, const ConstMatrix& x, const DeviceWeight& weight,
                         const ConstMatrix* bias, const Matrix& y, bool rounded, std::byte* workspace,
                         unsigned* arrivals) {
  if (y.rows == 0 || y.cols == 0) return;
  if (weight.left_columns) {
    const int64_t cols = weight.matrix.in;
    if (!on_tensor_cores(x.dtype, weight.matrix, rounded))
      fail(ErrorCode::dtype, "x: ", name_of(x.dtype), " for a weight in the order of tensor cores");
    order_activations_cuda(stream, x, weight.left_columns, cols, reinterpret_cast<uint16_t*>(workspace));
    DeviceWeight in_order = weight;
    in_order.left_columns = nullptr;
    return dequant_matmul_cuda(stream, {workspace, x.dtype, x.rows, cols, cols, 1}, in_order, bias, y,
                               rounded, workspace + ordered_bytes(x.rows, weight), arrivals);
  }
  if (!on_tensor_cores(x.dtype, weight.matrix, rounded) || (x.col_stride != 1 && x.cols > 1))
    return dequant_matmul_float32_cuda(stream, x, weight, bias, y);
  DeviceWeight filled = weight;
  const bool scaled = x.dtype == DType::float16 && !weight.matrix.table_of_integers;
  const float unscale = scaled ? fill_float16_range(filled) : 1;
  const int tile_rows = coded_tile_rows(y.rows);
  const CodedCall call{static_cast<simt::Stream>(stream),
                       x,
                       filled,
                       unscale,
                       nullptr,
                       tiles_of_rows(y.rows, tile_rows),
                       shares_of(y.rows, weight.matrix).splits,
                       {reinterpret_cast<float4*>(workspace), arrivals},
                       epilogue_of(bias, y),
                       tile_rows};
  weight.matrix.table_of_integers ? launch_integer_product(call) : launch_table_product(call);
}

}  // namespace quantaria::ops
