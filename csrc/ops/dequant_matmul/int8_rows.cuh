#pragma once

#include "core/matrix.h"
#include "ops/dequant_matmul/coded_matrix.h"
#include "ops/gemm/epilogue.cuh"
#include "ops/gemm/product_tiles.cuh"
#include "simt/simt.h"

/// Activations quantized to int8, as the loop of integer products reads them.
namespace quantaria::ops {

inline constexpr int64_t kInt8Run = 32;  // columns of one product on tensor cores

/// Codes [rows, row_bytes]: groups one after the other, each padded with zeros to whole runs. A value is
/// code * scale / scale_divisor; scales and sums of codes are [groups, rows]. In turns: of each run first the
/// even columns, then the odd ones, as a lane of tensor cores finds those of a weight of four bits, whose
/// codes share a byte.
struct Int8Rows {
  int64_t rows;
  int64_t cols;
  int64_t group;  // columns of a group, the last of which may be short
  int64_t groups;
  int64_t runs_per_group;
  bool in_turns;
  int8_t* codes;
  int64_t row_bytes;
  float* scales;
  float scale_divisor;
  int32_t* sums;  // null where nobody asks for them
};

/// Weights of eight bits have their columns as they are.
constexpr bool columns_in_turns(int bits) { return bits != 8; }

/// Where column j of rows in turns lies.
constexpr int place_in_turns(int j) { return (j & ~31) | (j & 1) << 4 | (j & 30) >> 1; }

/// Room in `workspace` for rows of a product with that weight.
Int8Rows int8_rows_in(std::byte* workspace, int64_t rows, const CodedMatrix& weight);
int64_t int8_rows_bytes(int64_t rows, const CodedMatrix& weight);

/// Each group of each row by its own scale (PackKernels::encode_int8).
void quantize_int8_rows(simt::Stream stream, const ConstMatrix& x, const Int8Rows& to);

/// What int8_product.cuh multiplies apart: columns in `columns`, of which there are *count, both in device
/// memory.
struct OutlierColumns {
  ConstMatrix x;
  const int32_t* columns;
  const int32_t* count;
};

/// A product of quantized rows, plain or grouped: `sources` and `tiles` as in CodedCall (coded_call.cuh),
/// whose left rows are those of `rows`. Integer sums are exact within a group.
struct Int8Call {
  simt::Stream stream;
  const Int8Rows& rows;
  const OutlierColumns* outliers;  // of a plain product, or null: none
  const DeviceWeight& weight;
  const CodedSource* sources;
  ProductTiles tiles;  // of tile_rows rows
  Epilogue epilogue;
  int tile_rows;
};
void launch_int8_product(const Int8Call& call);

/// Rows of a tile for groups of so many rows.
int int8_tile_rows(int64_t rows);

/// The plain one: y = rows W^T (+ outliers W^T) + bias.
void multiply_int8_rows(simt::Stream stream, const Int8Rows& rows, const OutlierColumns* outliers,
                        const DeviceWeight& weight, const ConstMatrix* bias, const Matrix& y);

}  // namespace quantaria::ops
