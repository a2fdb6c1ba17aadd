#include "cpu/exponential.h"
#include "cpu/lanes.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

template <class Body>
void for_each_sixteen(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, int64_t{kLanes});
  if (i < n) body(i, n - i);
}

Floats load_up_to(const float* from, int64_t count) {
  return count == kLanes ? load(from) : load_some(from, count);
}
void store_up_to(float* to, const Floats& x, int64_t count) {
  count == kLanes ? store(to, x) : store_some(to, x, count);
}

void swiglu(const float* gate, const float* up, int64_t n, float* to) {
  for_each_sixteen(n, [&](int64_t i, int64_t count) {
    const Floats g = load_up_to(gate + i, count);
    // Past the ends the quotient is g or next to 0 anyway.
    const Floats negated = larger(smaller(splat(0.0f) - g, splat(88.0f)), splat(-87.0f));
    const Floats silu = g / (splat(1.0f) + exponential(negated));
    store_up_to(to + i, silu * load_up_to(up + i, count), count);
  });
}

void weigh(const float* from, float weight, int64_t n, bool accumulate, float* to) {
  for_each_sixteen(n, [&](int64_t i, int64_t count) {
    const Floats x = load_up_to(from + i, count);
    const Floats sum =
        accumulate ? multiply_add(x, splat(weight), load_up_to(to + i, count)) : x * splat(weight);
    store_up_to(to + i, sum, count);
  });
}

}  // namespace

extern void (*const swiglu_row)(const float*, const float*, int64_t, float*);
void (*const swiglu_row)(const float*, const float*, int64_t, float*) = swiglu;
extern void (*const weigh_row)(const float*, float, int64_t, bool, float*);
void (*const weigh_row)(const float*, float, int64_t, bool, float*) = weigh;

}  // namespace quantaria::ops::QUANTARIA_ISA
