#include "ops/gptq/outer_products.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const OuterProducts outer_products;
}
namespace avx2 {
extern const OuterProducts outer_products;
}
namespace avx512 {
extern const OuterProducts outer_products;
}
namespace avx512bf16 {
extern const OuterProducts outer_products;
}

const OuterProducts& float32_outer_products() {
  static constexpr const OuterProducts* kByIsa[] = {&scalar::outer_products, &avx2::outer_products,
                                                    &avx512::outer_products};
  return *of_selected_isa(kByIsa);
}

const OuterProducts* bfloat16_outer_products() {
  static constexpr const OuterProducts* kByIsa[] = {nullptr, nullptr, nullptr, nullptr,
                                                    &avx512bf16::outer_products};
  return of_selected_isa(kByIsa);
}

}  // namespace quantaria::ops
