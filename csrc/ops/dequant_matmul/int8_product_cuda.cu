#include "ops/dequant_matmul/int8_product.cuh"

namespace quantaria::ops {

void multiply_int8_rows(simt::Stream stream, const Int8Rows& rows, const OutlierColumns* outliers,
                        const DeviceWeight& weight, const ConstMatrix* bias, const Matrix& y) {
  const CodedMatrix& m = weight.matrix;
  const int64_t first_words = rows.group * m.bits / 32;
  const bool vectors = m.bits % 4 == 0 && m.row_bits % 128 == 0 &&
                       (rows.groups <= 1 || (rows.group % kInt8Run == 0 && first_words % 4 == 0));
  const Int8Product product{rows,
                            {m, weight.table},
                            outliers ? *outliers : OutlierColumns{},
                            vectors,
                            static_cast<int>(rows.groups * rows.runs_per_group),
                            epilogue_of(bias, y)};
  if (outliers) return launch_llm_int8(stream, product);
  if (m.bits == 4) return launch_int8<4, void>(stream, product);
  if (m.bits == 8) return launch_int8<8, void>(stream, product);
  launch_int8<0, void>(stream, product);
}

}  // namespace quantaria::ops
