#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "ops/copy/copy_cuda.h"
#include "simt/emulator/global_memory.h"
#include "simt_test.h"

// Transposed copies, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

/// [rows, cols] of random bits out of a source of its transpose with rows of `stride` elements from `first`
/// on.
template <class Bits>
bool transpose_is_right(DType dtype, int64_t rows, int64_t cols, int64_t stride, int64_t first) {
  const auto memory = std::make_shared<simt::emulator::GlobalMemory>();
  const auto source = memory->allocate(cols * stride * size_of(dtype));
  const auto target = memory->allocate(rows * cols * size_of(dtype));
  auto* const from = reinterpret_cast<Bits*>(source.get());
  std::mt19937_64 random(1);
  for (int64_t i = 0; i < cols * stride; ++i) from[i] = static_cast<Bits>(random());
  simt::emulator::options().global = memory.get();
  ops::copy_cuda(nullptr, {source.get() + first * size_of(dtype), dtype, rows, cols, 1, stride},
                 {target.get(), dtype, rows, cols, cols, 1});
  simt::emulator::options().global = nullptr;
  memory->require_intact();
  const auto* const to = reinterpret_cast<const Bits*>(target.get());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      if (to[r * cols + c] != from[c * stride + first + r]) return false;
  return true;
}

TEST("simt: transposed copies are byte for byte, in pieces of 16 bytes and where there are none") {
  for (const int64_t rows : {8, 16, 64, 72, 136})
    for (const int64_t cols : {8, 24, 64, 200}) {
      CHECK(transpose_is_right<uint16_t>(DType::bfloat16, rows, cols, 2 * rows, rows));
      CHECK(transpose_is_right<uint16_t>(DType::bfloat16, rows - 1, cols, 2 * rows, 3));
      CHECK(transpose_is_right<uint32_t>(DType::float32, rows, cols, rows, 0));
      CHECK(transpose_is_right<uint64_t>(DType::int64, rows, cols, rows + 2, 2));
    }
  CHECK(transpose_is_right<uint8_t>(DType::uint8, 144, 272, 160, 16));
}

bool pieces() { return transpose_is_right<uint16_t>(DType::bfloat16, 72, 136, 80, 8); }
bool many_tiles() { return transpose_is_right<uint64_t>(DType::int64, 2, 40000, 2, 0); }  // several a block
bool elements() { return transpose_is_right<uint16_t>(DType::bfloat16, 35, 40, 35, 0); }
bool many_elements() { return transpose_is_right<uint8_t>(DType::int8, 1, 70000, 3, 1); }

TEST("simt: transposed copies are right in every order of threads, and need each barrier") {
  for (const auto& body : {pieces, elements}) require_right(__FILE__, __LINE__, every_order(1, 2), body);
  // Tile after tile in one block, which takes long: in one order.
  require_each_sync(__FILE__, __LINE__, {many_tiles, many_elements}, {every_order(1).back()});
}

}  // namespace
