#include "ops/bitpack/kernels.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const BitKernels bit_kernels;
}
namespace avx2 {
extern const BitKernels bit_kernels;
}
namespace avx512 {
extern const BitKernels bit_kernels;
}

const BitKernels& bit_kernels() {
  static const BitKernels* const by_isa[] = {&scalar::bit_kernels, &avx2::bit_kernels, &avx512::bit_kernels};
  return *of_selected_isa(by_isa);
}

}  // namespace quantaria::ops
