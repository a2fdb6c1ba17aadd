#pragma once

#include <memory>

#include "ops/dequant_matmul/coded_weight.h"
#include "ops/gemm/factor.h"

namespace quantaria::ops {

/// The transpose of a quantized weight [out, in] as right factor, decoded on the way. `weight` must outlive
/// it.
///
/// Up to four rows are multiplied by codes that are decoded into registers, so that the weight's bytes are
/// the only ones that move. More rows share panels that are decoded once to the operands of the product.
std::unique_ptr<Factor> make_coded_factor(CodedWeight weight, Operand products);

}  // namespace quantaria::ops
