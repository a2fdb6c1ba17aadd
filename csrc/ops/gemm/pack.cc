#include "ops/gemm/pack.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const PackKernels pack_kernels;
}
namespace avx2 {
extern const PackKernels pack_kernels;
}
namespace avx512 {
extern const PackKernels pack_kernels;
}

const PackKernels& pack_kernels() {
  static const PackKernels* const by_isa[] = {&scalar::pack_kernels, &avx2::pack_kernels,
                                              &avx512::pack_kernels};
  return *of_selected_isa(by_isa);
}

}  // namespace quantaria::ops
