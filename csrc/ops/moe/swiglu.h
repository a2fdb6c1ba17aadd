#pragma once

#include <cstdint>

namespace quantaria::ops {

/// to[i] = gate[i] / (1 + exp(-gate[i])) * up[i] for i < n; to may be gate or up. NaN and infinities go the
/// way of the formula.
void swiglu_row(const float* gate, const float* up, int64_t n, float* to);

/// to[i] = from[i] * weight (+ to[i]).
void weigh_row(const float* from, float weight, int64_t n, bool accumulate, float* to);

}  // namespace quantaria::ops
