#include "ops/gptq/kernels.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const GptqKernels gptq_kernels;
}
namespace avx2 {
extern const GptqKernels gptq_kernels;
}
namespace avx512 {
extern const GptqKernels gptq_kernels;
}

const GptqKernels& gptq_kernels() {
  static constexpr const GptqKernels* kByIsa[] = {&scalar::gptq_kernels, &avx2::gptq_kernels,
                                                  &avx512::gptq_kernels};
  return *of_selected_isa(kByIsa);
}

}  // namespace quantaria::ops
