#pragma once

#include "cpu/lanes.h"
#include "ops/gptq/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {

void strip_product(int64_t strips, int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart,
                   const float* b, int64_t b_apart, float* c, int64_t c_apart);

}  // namespace quantaria::ops::QUANTARIA_ISA
