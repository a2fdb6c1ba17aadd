#include "ops/decoder/kernels.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const DecoderKernels decoder_kernels;
}
namespace avx2 {
extern const DecoderKernels decoder_kernels;
}
namespace avx512 {
extern const DecoderKernels decoder_kernels;
}

const DecoderKernels& decoder_kernels() {
  static constexpr const DecoderKernels* kByIsa[] = {&scalar::decoder_kernels, &avx2::decoder_kernels,
                                                     &avx512::decoder_kernels};
  return *of_selected_isa(kByIsa);
}

}  // namespace quantaria::ops
