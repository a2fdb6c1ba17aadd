#include "ops/moe/swiglu.h"

#include "cpu/isa.h"

namespace quantaria::ops {

using Swiglu = void (*)(const float*, const float*, int64_t, float*);
using Weigh = void (*)(const float*, float, int64_t, bool, float*);

namespace scalar {
extern const Swiglu swiglu_row;
extern const Weigh weigh_row;
}  // namespace scalar
namespace avx2 {
extern const Swiglu swiglu_row;
extern const Weigh weigh_row;
}  // namespace avx2
namespace avx512 {
extern const Swiglu swiglu_row;
extern const Weigh weigh_row;
}  // namespace avx512

void swiglu_row(const float* gate, const float* up, int64_t n, float* to) {
  const Swiglu by_isa[] = {scalar::swiglu_row, avx2::swiglu_row, avx512::swiglu_row};
  of_selected_isa(by_isa)(gate, up, n, to);
}

void weigh_row(const float* from, float weight, int64_t n, bool accumulate, float* to) {
  const Weigh by_isa[] = {scalar::weigh_row, avx2::weigh_row, avx512::weigh_row};
  of_selected_isa(by_isa)(from, weight, n, accumulate, to);
}

}  // namespace quantaria::ops
