#include "ops/dequant_matmul/int8_product.cuh"

namespace quantaria::ops {
namespace {

/// Whether all columns are one group, whose sums stay in int32 even where codes are shifted up.
bool is_whole(const Int8Rows& rows) { return rows.groups <= 1 && rows.row_bytes <= 1 << 17; }

/// Whether a step of every tile is a group.
bool is_step(const Int8Rows& rows) { return rows.group == ManyInt8Rows::kStep; }

/// The largest tiles serve best, where there are such and they are enough for two blocks on each
/// multiprocessor.
bool fills_largest(const Int8Rows& rows, const CodedMatrix& weight) {
  constexpr int64_t kWantedBlocks = 2 * cuda::kMultiprocessors;
  if ((weight.bits != 4 && weight.bits != 8) || (!is_whole(rows) && !is_step(rows))) return false;
  const int64_t row_tiles = (rows.rows + MostInt8Rows::kTileRows - 1) / MostInt8Rows::kTileRows;
  const int64_t col_tiles = (weight.out + MostInt8Rows::kTileCols - 1) / MostInt8Rows::kTileCols;
  return rows.rows > ManyInt8Rows::kTileRows && row_tiles * col_tiles >= kWantedBlocks;
}

}  // namespace

int int8_tile_rows(int64_t rows) {
  return rows <= FewInt8Rows::kTileRows ? FewInt8Rows::kTileRows : ManyInt8Rows::kTileRows;
}

void launch_int8_product(const Int8Call& call) {
  const CodedMatrix& m = call.weight.matrix;
  const Int8Rows& rows = call.rows;
  const int64_t first_words = rows.group * m.bits / 32;
  const bool vectors = m.bits % 4 == 0 && m.row_bits % 128 == 0 &&
                       (rows.groups <= 1 || (rows.group % kInt8Run == 0 && first_words % 4 == 0));
  const Int8Product product{rows,
                            {m, call.weight.table},
                            call.sources,
                            call.tiles,
                            call.outliers ? *call.outliers : OutlierColumns{},
                            vectors,
                            static_cast<int>(m.row_bits / 32),
                            {},
                            call.epilogue};
  const bool whole = is_whole(rows);
  if (m.bits == 8 && whole) return launch_llm_int8(call.stream, product, call.tile_rows);
  if (m.bits != 4 && m.bits != 8)
    return launch_int8<0, RunGroups, void>(call.stream, product, call.tile_rows);
  const bool by_step = is_step(rows);
  if (m.bits == 8)
    return by_step ? launch_int8<8, StepGroups, void>(call.stream, product, call.tile_rows)
                   : launch_int8<8, RunGroups, void>(call.stream, product, call.tile_rows);
  if (whole) return launch_int8<4, OneGroup, void>(call.stream, product, call.tile_rows);
  by_step ? launch_int8<4, StepGroups, void>(call.stream, product, call.tile_rows)
          : launch_int8<4, RunGroups, void>(call.stream, product, call.tile_rows);
}

void multiply_int8_rows(simt::Stream stream, const Int8Rows& rows, const OutlierColumns* outliers,
                        const DeviceWeight& weight, const ConstMatrix* bias, const Matrix& y) {
  const int tile_rows = fills_largest(rows, weight.matrix) ? MostInt8Rows::kTileRows : int8_tile_rows(y.rows);
  launch_int8_product({stream, rows, outliers, weight, nullptr, tiles_of_rows(y.rows, tile_rows),
                       epilogue_of(bias, y), tile_rows});
}

}  // namespace quantaria::ops
