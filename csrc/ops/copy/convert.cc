#include "ops/copy/convert.h"

#include <cstring>

#include "cpu/isa.h"

namespace quantaria::ops {

using Convert = void(DType from_dtype, const std::byte* from, DType to_dtype, std::byte* to, int64_t n);
namespace scalar {
extern Convert convert;
}
namespace avx2 {
extern Convert convert;
}
namespace avx512 {
extern Convert convert;
}

void convert_row(DType from_dtype, const std::byte* from, DType to_dtype, std::byte* to, int64_t n) {
  // Short copies by the C library: in the kernels the compiler makes them `rep movs`, which takes longer to
  // start than a row of a panel takes to copy.
  if (from_dtype == DType::float32 && to_dtype == DType::float32) {
    if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  static constexpr Convert* kByIsa[] = {scalar::convert, avx2::convert, avx512::convert};
  of_selected_isa(kByIsa)(from_dtype, from, to_dtype, to, n);
}

}  // namespace quantaria::ops
