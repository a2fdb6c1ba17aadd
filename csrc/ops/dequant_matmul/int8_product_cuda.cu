#include "ops/dequant_matmul/int8_product.cuh"

namespace quantaria::ops {

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
  if (call.outliers) return launch_llm_int8(call.stream, product, call.tile_rows);
  if (m.bits == 4) return launch_int8<4, void>(call.stream, product, call.tile_rows);
  if (m.bits == 8) return launch_int8<8, void>(call.stream, product, call.tile_rows);
  launch_int8<0, void>(call.stream, product, call.tile_rows);
}

void multiply_int8_rows(simt::Stream stream, const Int8Rows& rows, const OutlierColumns* outliers,
                        const DeviceWeight& weight, const ConstMatrix* bias, const Matrix& y) {
  const int tile_rows = int8_tile_rows(y.rows);
  launch_int8_product({stream, rows, outliers, weight, nullptr, tiles_of_rows(y.rows, tile_rows),
                       epilogue_of(bias, y), tile_rows});
}

}  // namespace quantaria::ops
