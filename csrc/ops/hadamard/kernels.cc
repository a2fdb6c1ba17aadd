#include "ops/hadamard/kernels.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const HadamardKernels hadamard_kernels;
}
namespace avx2 {
extern const HadamardKernels hadamard_kernels;
}
namespace avx512 {
extern const HadamardKernels hadamard_kernels;
}

const HadamardKernels& hadamard_kernels() {
  static constexpr const HadamardKernels* kByIsa[] = {&scalar::hadamard_kernels, &avx2::hadamard_kernels,
                                                      &avx512::hadamard_kernels};
  return *of_selected_isa(kByIsa);
}

}  // namespace quantaria::ops
