#pragma once

#include "ops/dequant_matmul/coded_matrix.h"
#include "simt/simt.h"

namespace quantaria::ops {

/// relative_error [1] of a quantized weight against w; `partial`: error_sums_workspace bytes.
int64_t error_sums_workspace();
void relative_error_cuda(simt::Stream stream, const ConstMatrix& w, const DeviceWeight& quantized,
                         std::byte* partial, float* relative_error);

}  // namespace quantaria::ops
