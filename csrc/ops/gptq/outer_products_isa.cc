#include "cpu/lanes.h"
#include "ops/gptq/outer_products_tile.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

struct Step {
  using Word = float;
  using Vector = Floats;
  using Sum = Floats;
  static constexpr int64_t kLanes = 16;
  // As many sums as the registers hold beside a step; each value of a is broadcast once for all vectors.
#if defined(__AVX512F__)
  static constexpr int kRows = 8, kVectors = 3;  // 24 of 32 registers
#elif defined(__AVX2__)
  static constexpr int kRows = 6, kVectors = 1;  // 12 of 16, two to a vector
#else
  static constexpr int kRows = 2, kVectors = 1;  // 8 of 16, four to a vector
#endif
  QUANTARIA_LANES Vector load(const float* from) { return QUANTARIA_ISA::load(from); }
  QUANTARIA_LANES Vector broadcast(const float* from) { return splat(*from); }
  QUANTARIA_LANES Sum zero() { return splat(0.0f); }
  QUANTARIA_LANES Sum multiply_add(const Vector& x, const Vector& y, const Sum& sum) {
    return QUANTARIA_ISA::multiply_add(x, y, sum);
  }
  QUANTARIA_LANES void add_to(float* c, const Sum& sum) { store(c, QUANTARIA_ISA::load(c) + sum); }
};

void add_sums(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace

extern const OuterProducts outer_products;
const OuterProducts outer_products = {Operand::float32, add_outer_panel<Step>, add_sums};

}  // namespace quantaria::ops::QUANTARIA_ISA
