#include <random>

#include "check.h"
#include "ops/hadamard/hadamard.h"
#include "ops/hadamard/hadamard_cuda.h"
#include "simt_room.h"

// Hadamard transforms, emulated: the bits of the CPU's.
namespace {

using namespace quantaria;
using namespace quantaria::test;

bool transform_is_right(int64_t rows, int64_t n) {
  DeviceRoom room;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(rows * n));
  for (float& value : x) value = normal(random);
  std::vector<float> expected(x.size());
  ThreadPool serial(1);
  ops::hadamard(serial, DType::float32, rows, n, 0.3f, reinterpret_cast<const std::byte*>(x.data()),
                reinterpret_cast<std::byte*>(expected.data()));
  auto* const there = reinterpret_cast<std::byte*>(room.copy(x));
  auto* const y = room.take<float>(rows * n);
  auto* const workspace = room.take<std::byte>(ops::hadamard_workspace(rows, n));
  room.run([&] {
    ops::hadamard_cuda(nullptr, DType::float32, rows, n, 0.3f, there, reinterpret_cast<std::byte*>(y),
                       workspace);
    ops::hadamard_cuda(nullptr, DType::float32, rows, n, 0.3f, there, there, workspace);
  });
  return same_bits(y, expected) && same_bits(reinterpret_cast<float*>(there), expected);
}

TEST("simt: Hadamard transforms have the bits of the CPU, in place too") {
  for (const int64_t n :
       {1, 2, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 12, 20, 28, 40, 60, 92, 252, 48, 2560})
    CHECK(transform_is_right(3, n));
}

TEST("simt: Hadamard transforms are right in every order of threads, and need each barrier") {
  require_each_sync(__FILE__, __LINE__, {[] { return transform_is_right(2, 4096); }});
  require_each_sync(__FILE__, __LINE__, {[] { return transform_is_right(2, 1536); }});
}

}  // namespace
