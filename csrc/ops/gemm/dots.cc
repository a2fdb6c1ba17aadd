#include "ops/gemm/dots.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const FloatDots float_dots;
}
namespace avx2 {
extern const FloatDots float_dots;
}
namespace avx512 {
extern const FloatDots float_dots;
}
namespace avx512bf16 {
extern const PairDots pair_dots;
}

Dots* dots(Operand operand, DType dtype, Contiguous layout, int64_t rows) {
  if (rows < 1 || rows > kMostDotRows) return nullptr;
  const auto by = static_cast<size_t>(layout);
  if (operand == Operand::bfloat16)  // only there are its instructions
    return dtype == DType::bfloat16 ? avx512bf16::pair_dots.of_bfloat16[by][rows - 1] : nullptr;
  static const FloatDots* const by_isa[] = {&scalar::float_dots, &avx2::float_dots, &avx512::float_dots};
  const FloatDots& kernels = *of_selected_isa(by_isa);
  const auto& of_dtype = dtype == DType::float32   ? kernels.of_float32
                         : dtype == DType::float16 ? kernels.of_float16
                                                   : kernels.of_bfloat16;
  return of_dtype[by][rows - 1];
}

}  // namespace quantaria::ops
