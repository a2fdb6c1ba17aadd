#include <immintrin.h>

#include "ops/gptq/outer_products_tile.h"

namespace quantaria::ops::avx512bf16 {
namespace {

struct Step {
  using Word = int32_t;  // a pair of bfloat16
  using Vector = __m512bh;
  using Sum = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int kRows = 8, kVectors = 3;
  static Vector load(const int32_t* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }
  static Vector broadcast(const int32_t* from) {
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(*from));
  }
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum multiply_add(const Vector& x, const Vector& y, const Sum& sum) {
    return _mm512_dpbf16_ps(sum, x, y);
  }
  static void add_to(float* c, const Sum& sum) {
    _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), sum));
  }
};

void add_sums(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace

extern const OuterProducts outer_products;
const OuterProducts outer_products = {Operand::bfloat16, add_outer_panel<Step>, add_sums};

}  // namespace quantaria::ops::avx512bf16
