#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cpu/isa.h"
#include "ops/bitpack/bitpack.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;

constexpr int64_t kWidths[] = {0, 1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 127, 129, 1000};
constexpr int kBits[] = {2, 3, 4, 5, 6, 7, 8, 16};

template <class T>
ConstMatrix rows_of(const std::vector<T>& data, DType dtype, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(data.data()), dtype, rows, cols, cols, 1};
}
template <class T>
Matrix rows_of(std::vector<T>& data, DType dtype, int64_t rows, int64_t cols) {
  return {reinterpret_cast<std::byte*>(data.data()), dtype, rows, cols, cols, 1};
}

/// Code k at bits [k b, (k + 1) b) of the row's stream, bit by bit.
std::vector<uint8_t> packed_by_definition(const std::vector<int32_t>& codes, int64_t rows, int64_t cols,
                                          int bits) {
  const int64_t row_bytes = (cols * bits + 31) / 32 * 4;
  std::vector<uint8_t> packed(static_cast<size_t>(rows * row_bytes));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < cols * bits; ++k)
      if (codes[static_cast<size_t>(r * cols + k / bits)] >> (k % bits) & 1)
        packed[static_cast<size_t>(r * row_bytes + k / 8)] |= static_cast<uint8_t>(1 << (k % 8));
  return packed;
}

std::vector<int32_t> random_codes(int64_t count, int bits) {
  std::mt19937 random(static_cast<uint32_t>(count * 31 + bits));
  std::vector<int32_t> codes(static_cast<size_t>(count));
  for (int32_t& code : codes) code = static_cast<int32_t>(random() & ((1u << bits) - 1));
  return codes;
}

TEST("packing gives the dense stream of the definition, zero padded, and unpacking the codes, on every ISA") {
  for (int isa = 0; isa <= static_cast<int>(detected_isa()); ++isa) {
    select_isa(static_cast<Isa>(isa));
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      for (const int bits : kBits) {
        for (const int64_t cols : kWidths) {
          constexpr int64_t kRows = 3;
          const std::vector<int32_t> codes = random_codes(kRows * cols, bits);
          const std::vector<uint8_t> expected = packed_by_definition(codes, kRows, cols, bits);
          std::vector<uint8_t> packed(expected.size(), 0xa5);
          pack_bits(pool, rows_of(codes, DType::int32, kRows, cols), bits, 0, packed.data());
          CHECK_EQ(packed, expected);
          std::vector<int32_t> back(codes.size(), -1);
          unpack_bits(pool, packed.data(), packed_row_bytes(cols, bits), bits, 0,
                      rows_of(back, DType::int32, kRows, cols));
          CHECK_EQ(back, codes);
        }
      }
    }
  }
  select_isa(detected_isa());
}

TEST("signed codes pack with their offset and come back as int8 and int16") {
  ThreadPool pool(2);
  const std::vector<int8_t> codes{-8, -7, -1, 0, 1, 7, 3, -4};
  std::vector<uint8_t> packed(4, 0xa5);
  pack_bits(pool, rows_of(codes, DType::int8, 1, 8), 4, 8, packed.data());
  CHECK_EQ(packed, (std::vector<uint8_t>{0x10, 0x87, 0xf9, 0x4b}));
  std::vector<int8_t> back(8, 99);
  unpack_bits(pool, packed.data(), 4, 4, 8, rows_of(back, DType::int8, 1, 8));
  CHECK_EQ(back, codes);
  const std::vector<int16_t> wide{-32767, 32767, 0};
  std::vector<uint8_t> wide_packed(8, 0xa5);
  pack_bits(pool, rows_of(wide, DType::int16, 1, 3), 16, 32768, wide_packed.data());
  CHECK_EQ(wide_packed, (std::vector<uint8_t>{0x01, 0x00, 0xff, 0xff, 0x00, 0x80, 0x00, 0x00}));
  std::vector<int16_t> wide_back(3);
  unpack_bits(pool, wide_packed.data(), 8, 16, 32768, rows_of(wide_back, DType::int16, 1, 3));
  CHECK_EQ(wide_back, wide);
}

TEST("nibble order: AWQ's codes 0..7 of eight columns give its published word, and come back") {
  ThreadPool pool(1);
  const NibbleOrder awq{0, 2, 4, 6, 1, 3, 5, 7};
  const std::vector<uint8_t> codes{0, 1, 2, 3, 4, 5, 6, 7};
  std::vector<uint8_t> packed(4);
  pack_bits(pool, rows_of(codes, DType::uint8, 1, 8), 4, 0, packed.data(), awq);
  CHECK_EQ(packed, (std::vector<uint8_t>{0x20, 0x64, 0x31, 0x75}));
  std::vector<uint8_t> back(8);
  unpack_bits(pool, packed.data(), 4, 4, 0, rows_of(back, DType::uint8, 1, 8), awq);
  CHECK_EQ(back, codes);
}

TEST("a code out of range is refused with the first position in row-major order") {
  ThreadPool pool(2);
  std::vector<int32_t> codes(4 * 100000, 3);
  codes[2 * 100000 + 7] = 16;
  codes[3 * 100000 + 1] = -1;
  std::vector<uint8_t> packed(static_cast<size_t>(4 * packed_row_bytes(100000, 4)));
  std::string message;
  try {
    pack_bits(pool, rows_of(codes, DType::int32, 4, 100000), 4, 0, packed.data());
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::argument);
    message = error.what();
  }
  CHECK_EQ(message, std::string("codes: 16 at row 2, column 7, 0 .. 15 expected for 4 bits"));
  CHECK_THROWS(Error, pack_bits(pool, rows_of(codes, DType::int32, 1, 8), 9, 0, packed.data()));
  std::vector<int8_t> narrow(8);
  CHECK_THROWS(Error, unpack_bits(pool, packed.data(), 8, 8, 0, rows_of(narrow, DType::int8, 1, 8)));
}

TEST("planar packing: quanto's documented bytes, and back") {
  ThreadPool pool(2);
  std::vector<uint8_t> packed(3, 0xa5);
  const std::vector<uint8_t> five{1, 2, 3, 4, 5};
  pack_planar(pool, five.data(), 5, 1, 4, packed.data());
  CHECK_EQ(packed, (std::vector<uint8_t>{0x41, 0x52, 0x03}));
  std::vector<uint8_t> back(5);
  unpack_planar(pool, packed.data(), 5, 1, 4, back.data());
  CHECK_EQ(back, five);
  const std::vector<uint8_t> twos{0, 1, 2, 3, 1};
  std::vector<uint8_t> packed_twos(2, 0xa5);
  pack_planar(pool, twos.data(), 5, 1, 2, packed_twos.data());
  CHECK_EQ(packed_twos, (std::vector<uint8_t>{0x18, 0x0d}));
  unpack_planar(pool, packed_twos.data(), 5, 1, 2, back.data());
  CHECK_EQ(back, twos);
  const std::vector<uint8_t> wrong{1, 16};
  CHECK_THROWS(Error, pack_planar(pool, wrong.data(), 1, 2, 4, packed.data()));
}

TEST("swap_nibbles exchanges halves in place; offset_codes adds, clamps or refuses") {
  ThreadPool pool(2);
  std::vector<uint8_t> bytes{0x12, 0xf0, 0x0f};
  swap_nibbles(pool, bytes.data(), 3, bytes.data());
  CHECK_EQ(bytes, (std::vector<uint8_t>{0x21, 0x0f, 0xf0}));
  const std::vector<uint8_t> codes{0, 128, 255};
  std::vector<int8_t> moved(3);
  offset_codes(pool, rows_of(codes, DType::uint8, 1, 3), -128, std::nullopt,
               rows_of(moved, DType::int8, 1, 3));
  CHECK_EQ(moved, (std::vector<int8_t>{-128, 0, 127}));
  std::vector<uint8_t> clamped(3);
  offset_codes(pool, rows_of(codes, DType::uint8, 1, 3), -1, CodeRange{1, 200},
               rows_of(clamped, DType::uint8, 1, 3));
  CHECK_EQ(clamped, (std::vector<uint8_t>{1, 127, 200}));
  CHECK_THROWS(Error, offset_codes(pool, rows_of(codes, DType::uint8, 1, 3), 1, std::nullopt,
                                   rows_of(clamped, DType::uint8, 1, 3)));
}

}  // namespace
