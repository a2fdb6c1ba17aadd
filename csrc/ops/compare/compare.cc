#include "ops/compare/compare.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace quantaria::ops {

Difference compare(ThreadPool& pool, const float* values, const float* reference, int64_t count) {
  constexpr int64_t kChunk = 65536;
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<Difference> partial(static_cast<size_t>(chunks));
  pool.parallel_for(chunks, [&](int64_t chunk) {
    Difference sum;
    const int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) {
      const double expected = reference == nullptr ? 0.0 : double{reference[i]};
      const double error = double{values[i]} - expected;
      sum.error += error * error;
      sum.reference += expected * expected;
      sum.non_finite += std::isfinite(values[i]) ? 0 : 1;
    }
    partial[static_cast<size_t>(chunk)] = sum;
  });
  Difference total;
  for (const Difference& part : partial) {
    total.error += part.error;
    total.reference += part.reference;
    total.non_finite += part.non_finite;
  }
  return total;
}

}  // namespace quantaria::ops
