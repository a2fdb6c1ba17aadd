#include "ops/dequant_matmul/byte_rows.h"

namespace quantaria::ops::QUANTARIA_ISA {

extern const ByteRows byte_rows;
const ByteRows byte_rows = byte_rows_of(std::make_integer_sequence<int, kByteRows>());

}  // namespace quantaria::ops::QUANTARIA_ISA
