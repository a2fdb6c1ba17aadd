#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "ops/scaling/scaling_cuda.h"
#include "simt_room.h"

// What groups of rounded weights cost, emulated: the one kernel of scaling whose threads meet.
namespace {

using namespace quantaria;
using namespace quantaria::test;

bool errors_are_right(int64_t rows, int64_t cols, int64_t group) {
  DeviceRoom room;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto normals = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random);
    return values;
  };
  const std::vector<float> w = normals(rows * cols);
  const std::vector<float> v = normals(rows * cols);
  const std::vector<float> products = normals(cols * cols);
  const auto there = [&](const std::vector<float>& values) -> ConstMatrix {
    return {reinterpret_cast<const std::byte*>(room.copy(values)), DType::float32, rows, cols, cols, 1};
  };
  const int64_t groups = (cols + group - 1) / group;
  auto* const errors = room.take<float>(rows * groups);
  room.run([&] { ops::group_errors_cuda(nullptr, there(w), there(v), room.copy(products), group, errors); });
  const auto lost = [&](int64_t r, int64_t c) {
    return double{w[static_cast<size_t>(r * cols + c)] - v[static_cast<size_t>(r * cols + c)]};
  };
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t end = std::min(cols, (g + 1) * group);
      double sum = 0;
      double magnitude = 0;
      for (int64_t i = g * group; i < end; ++i)
        for (int64_t j = g * group; j < end; ++j) {
          const double p = double{products[static_cast<size_t>(std::min(i, j) * cols + std::max(i, j))]};
          sum += lost(r, i) * p * lost(r, j);
          magnitude += std::abs(lost(r, i) * p * lost(r, j));
        }
      const double got = double{errors[r * groups + g]};
      if (std::abs(got - sum) <= 2 * 0x1p-24 * std::sqrt(static_cast<double>(group)) * magnitude) continue;
      report(__FILE__, __LINE__,
             "(" + show(r) + ", " + show(g) + ") is " + show(got) + ", expected " + show(sum));
      return false;
    }
  return true;
}

TEST("simt: what groups cost is within the bound of float32 products, and needs its barrier") {
  for (const int64_t rows : {1, 9, 33})
    for (const auto& [cols, group] : {std::pair<int64_t, int64_t>{70, 32}, {300, 300}, {5, 8}, {1, 1}})
      CHECK(errors_are_right(rows, cols, group));
  require_each_sync(__FILE__, __LINE__, {[] { return errors_are_right(9, 70, 64); }});
}

}  // namespace
