#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "ops/gptq/gptq_cuda.h"
#include "simt_room.h"

// The kernels that sum Hessians, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

size_t at(int64_t i) { return static_cast<size_t>(i); }

/// States as they are stored, and what that is worth.
struct States {
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};

States stored_states(const std::vector<float>& values, DType dtype) {
  States states{std::vector<uint8_t>(values.size() * static_cast<size_t>(size_of(dtype))), values};
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::float32) {
      std::memcpy(states.bytes.data() + i * 4, &values[i], 4);
      continue;
    }
    const bool half = dtype == DType::float16;
    const uint16_t bits =
        half ? numerics::half_from_float(values[i]) : numerics::bfloat16_from_float(values[i]);
    std::memcpy(states.bytes.data() + i * 2, &bits, 2);
    states.values[i] = half ? numerics::float_from_half(bits) : numerics::float_from_bfloat16(bits);
  }
  return states;
}

struct HessianCase {
  DType dtype;
  int64_t in;
  std::vector<int32_t> counts;
  int64_t rows;  // of x
  bool exact;
  bool transposed = false;
};

/// Sums that begin with 3, of the upper triangles; what is under them keeps its poison.
bool hessians_are_right(const HessianCase& c) {
  DeviceRoom room;
  std::mt19937 random(static_cast<uint32_t>(c.in));
  std::normal_distribution<float> normal;
  std::vector<float> x(at(c.rows * c.in));
  for (float& value : x) value = c.exact ? static_cast<float>(random() % 9) - 4 : normal(random);
  const States states = stored_states(x, c.dtype);
  const auto problems = static_cast<int64_t>(c.counts.size());
  const float poison = std::nanf("");
  std::vector<float> before(at(problems * c.in * c.in), poison);
  for (int64_t p = 0; p < problems; ++p)
    for (int64_t i = 0; i < c.in; ++i)
      for (int64_t j = i; j < c.in; ++j) before[at((p * c.in + i) * c.in + j)] = 3;
  float* const products = room.copy(before);
  std::vector<uint8_t> bytes = states.bytes;
  if (c.transposed)
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t k = 0; k < c.in; ++k)
        std::memcpy(bytes.data() + (k * c.rows + r) * size_of(c.dtype),
                    states.bytes.data() + (r * c.in + k) * size_of(c.dtype), at(size_of(c.dtype)));
  const ConstMatrix matrix{reinterpret_cast<const std::byte*>(room.copy(bytes)),
                           c.dtype,
                           c.rows,
                           c.in,
                           c.transposed ? 1 : c.in,
                           c.transposed ? c.rows : 1};
  const int32_t* const counts = room.copy(c.counts);
  room.run([&] { ops::add_outer_products_cuda(nullptr, matrix, counts, problems, products); });
  int64_t first = 0;
  for (int64_t p = 0; p < problems; ++p) {
    const int64_t count = std::max(0, c.counts[at(p)]);
    for (int64_t i = 0; i < c.in; ++i)
      for (int64_t j = 0; j < c.in; ++j) {
        const float got = products[(p * c.in + i) * c.in + j];
        if (j < i) {
          if (!std::isnan(got)) return report(__FILE__, __LINE__, "wrote under the diagonal"), false;
          continue;
        }
        double sum = 3;
        double magnitude = 3;
        for (int64_t r = first; r < std::min(c.rows, first + count); ++r) {
          const double term = double{states.values[at(r * c.in + i)]} * states.values[at(r * c.in + j)];
          sum += term;
          magnitude += std::abs(term);
        }
        const double bound =
            c.exact ? 0 : 2 * 0x1p-24 * std::sqrt(static_cast<double>(count) + 1) * magnitude;
        if (!(std::abs(double{got} - sum) <= bound)) {
          report(__FILE__, __LINE__,
                 "problem " + show(p) + " (" + show(i) + ", " + show(j) + ") of " + show(c.in) + " is " +
                     show(got) + ", expected " + show(sum));
          return false;
        }
      }
    first = std::min(c.rows, first + count);
  }
  return true;
}

const std::vector<int32_t> kSorted{3, 0, 1, 45, 100, 0};

TEST("simt: Hessians of sorted states are exact for small integers, each of its own rows, in every dtype") {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const int64_t in : {1, 7, 64, 65, 136}) CHECK(hessians_are_right({dtype, in, kSorted, 153, true}));
  CHECK(hessians_are_right({DType::bfloat16, 129, {33}, 33, true}));
  for (const int64_t m : swept_rows())
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
      for (const int64_t in : {24, 65})
        CHECK(hessians_are_right({dtype, in, {static_cast<int32_t>(m), 0, 1}, m + 1, true}));
  CHECK(hessians_are_right({DType::float16, 24, {40}, 40, true, true}));
}

TEST("simt: counts that no rows are there for, or that are negative, read nothing else") {
  for (const DType dtype : {DType::float32, DType::bfloat16})
    CHECK(hessians_are_right({dtype, 24, {5, -3, 30, 7}, 20, true}));
}

TEST("simt: Hessians stay within 2 eps sqrt(K) sum|a||b| over long runs of states") {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    CHECK(hessians_are_right({dtype, 17, {700, 1}, 701, false}));
}

TEST("simt: Hessians are the same in every order of threads and arrivals, and need each barrier and wait") {
  require_each_sync(__FILE__, __LINE__,
                    {[] { return hessians_are_right({DType::bfloat16, 72, {70, 100}, 170, true}); }});
  require_each_sync(__FILE__, __LINE__,
                    {[] { return hessians_are_right({DType::float16, 9, {70}, 70, true}); }});
  require_each_sync(__FILE__, __LINE__,
                    {[] { return hessians_are_right({DType::float32, 70, {50}, 50, true}); }});
}

TEST("simt: no states of a Hessian conflict with others in shared memory") {
  CHECK(hessians_are_right({DType::bfloat16, 72, {70}, 70, true}));
  CHECK_EQ(simt::emulator::last_counts().bank_conflicts, uint64_t{0});
}

}  // namespace
