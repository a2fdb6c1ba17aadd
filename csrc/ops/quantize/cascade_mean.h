#pragma once

#include <cstdint>

namespace quantaria::ops {

/// Mean of float32 values, added in float32 in the order of PyTorch's CPU reduction (8 lanes, four
/// accumulators, partial sums cascaded over four levels). Double quantization subtracts the mean of the block
/// maxima before it rounds them, so another order would move small maxima beside large ones away from what
/// bitsandbytes stores. 0 for no values.
float cascade_mean(const float* values, int64_t count);

}  // namespace quantaria::ops
