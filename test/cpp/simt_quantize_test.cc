#include "check.h"
#include "ops/bitpack/bitpack_cuda.h"
#include "ops/compare/compare_cuda.h"
#include "ops/quantize/quantize_cuda.h"
#include "quantize_test.h"
#include "simt_room.h"

// Quantization kernels, emulated: the bytes of the CPU's, in every order of threads.
namespace {

using namespace quantaria;
using namespace quantaria::test;

ThreadPool& serial() {
  static ThreadPool pool(1);
  return pool;
}

std::vector<float> values_of(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  for (size_t i = 0; i < std::min<size_t>(40, values.size()); ++i) values[i] = i % 2 == 0 ? 0.0f : -0.0f;
  for (size_t i = 40; i < std::min<size_t>(72, values.size()); ++i)
    values[i] = i % 2 == 0 ? 0x1p-149f : -0.0f;
  return values;
}

ConstMatrix floats(const float* values, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values), DType::float32, rows, cols, cols, 1};
}

/// A weight on both sides.
struct Both {
  int64_t rows, cols;
  std::vector<float> values = values_of(rows * cols, 3);
  DeviceRoom room{};
  ops::QuantizeCall call{};

  ConstMatrix here() const { return floats(values.data(), rows, cols); }
  void begin(int64_t workspace) {
    call = {nullptr, floats(room.copy(values), rows, cols), room.take<float>(1), room.zeros(workspace)};
  }
  /// Within the bound of sums in float32 lanes, of which there are sixteen.
  bool near(const ops::ErrorSums& sums) const {
    const double expected = sums.error > 0 ? std::sqrt(sums.error / sums.weight) : 0;
    const double bound = static_cast<double>(rows * cols) / 16 * 0x1p-24 + 0x1p-22;
    return std::abs(double{*call.relative_error} - expected) <= bound * expected;
  }
};

bool integers_are_right(const ops::IntScheme& scheme, int64_t rows, int64_t cols) {
  Both both{rows, cols};
  const auto bytes = static_cast<size_t>(rows * ops::packed_row_bytes(cols, scheme.bits));
  const ops::ConstantsShape shape = ops::constants_shape(scheme, rows, cols);
  const auto constants = static_cast<size_t>(shape.rows * shape.cols);
  std::vector<uint8_t> packed(bytes);
  std::vector<float> scales(constants);
  std::vector<int32_t> zeros(scheme.symmetric ? 0 : constants);
  ops::ErrorSums sums;
  ops::quantize_int(serial(), both.here(), scheme,
                    {packed.data(), scales.data(), scheme.symmetric ? nullptr : zeros.data()}, &sums);
  both.begin(ops::quantize_int_workspace(scheme, rows, cols));
  const ops::IntStored to{
      both.room.take<uint8_t>(static_cast<int64_t>(bytes)),
      both.room.take<float>(static_cast<int64_t>(constants)),
      scheme.symmetric ? nullptr : both.room.take<int32_t>(static_cast<int64_t>(constants))};
  both.room.run([&] { ops::quantize_int_cuda(both.call, scheme, to); });
  return same_bits(to.packed, packed) && same_bits(to.scales, scales) && same_bits(to.zeros, zeros) &&
         both.near(sums);
}

bool books_are_right(const ops::CodebookScheme& scheme, int64_t rows, int64_t cols) {
  Both both{rows, cols};
  const int64_t blocks = ops::block_count(scheme, rows, cols);
  const int64_t bytes = ops::packed_row_bytes(rows * cols, scheme.book == ops::Codebook::dynamic8 ? 8 : 4);
  const int64_t nested = scheme.double_quant ? (blocks + 255) / 256 : 0;
  std::vector<uint8_t> packed(static_cast<size_t>(bytes));
  std::vector<float> absmax(static_cast<size_t>(scheme.double_quant ? 0 : blocks));
  std::vector<uint8_t> codes(static_cast<size_t>(scheme.double_quant ? blocks : 0));
  std::vector<float> scales(static_cast<size_t>(nested));
  std::vector<float> offset(scheme.double_quant ? 1 : 0);
  ops::ErrorSums sums;
  ops::quantize_codebook(serial(), both.here(), scheme,
                         {packed.data(), absmax.data(), codes.data(), scales.data(), offset.data()}, &sums);
  both.begin(ops::quantize_codebook_workspace(scheme, rows, cols));
  const ops::CodebookStored to{both.room.take<uint8_t>(bytes), both.room.take<float>(blocks),
                               both.room.take<uint8_t>(blocks), both.room.take<float>(nested),
                               both.room.take<float>(1)};
  both.room.run([&] { ops::quantize_codebook_cuda(both.call, scheme, to); });
  bool right = same_bits(to.packed, packed) && same_bits(to.absmax, absmax) &&
               same_bits(to.absmax_codes, codes) && same_bits(to.absmax_scales, scales) &&
               same_bits(to.absmax_offset, offset) && both.near(sums);
  if (!scheme.double_quant) return right;
  std::vector<float> decoded(static_cast<size_t>(blocks));
  ops::decode_nested_absmax(codes.data(), scales.data(), offset[0], blocks, decoded.data());
  auto* const there = both.room.take<float>(blocks);
  both.room.run([&] {
    ops::decode_nested_absmax_cuda(nullptr, to.absmax_codes, to.absmax_scales, to.absmax_offset, blocks,
                                   there);
  });
  return right && same_bits(there, decoded);
}

bool mx_is_right(const ops::MxScheme& scheme, int64_t rows, int64_t cols) {
  Both both{rows, cols};
  const int64_t bytes = rows * ops::packed_row_bytes(cols, ops::mx_element_bits(scheme.element));
  const int64_t blocks = rows * ((cols + 31) / 32);
  std::vector<uint8_t> packed(static_cast<size_t>(bytes));
  std::vector<uint8_t> scales(static_cast<size_t>(blocks));
  std::vector<float> factors(static_cast<size_t>(scheme.pre_scale ? rows : 0));
  ops::ErrorSums sums;
  ops::quantize_mx(serial(), both.here(), scheme, packed.data(), scales.data(),
                   scheme.pre_scale ? factors.data() : nullptr, &sums);
  both.begin(ops::quantize_rows_workspace(rows, cols));
  auto* const codes = both.room.take<uint8_t>(bytes);
  auto* const there = both.room.take<uint8_t>(blocks);
  auto* const pre = scheme.pre_scale ? both.room.take<float>(rows) : nullptr;
  both.room.run([&] { ops::quantize_mx_cuda(both.call, scheme, codes, there, pre); });
  return same_bits(codes, packed) && same_bits(there, scales) && same_bits(pre, factors) && both.near(sums);
}

bool fp8_is_right(const ops::Fp8Scheme& scheme, int64_t rows, int64_t cols) {
  Both both{rows, cols};
  const int64_t bytes = rows * ops::packed_row_bytes(cols, 8);
  std::vector<uint8_t> packed(static_cast<size_t>(bytes));
  std::vector<float> scales(static_cast<size_t>(scheme.per_row ? rows : 1));
  ops::ErrorSums sums;
  ops::quantize_fp8(serial(), both.here(), scheme, packed.data(), scales.data(), &sums);
  both.begin(ops::quantize_rows_workspace(rows, cols));
  auto* const codes = both.room.take<uint8_t>(bytes);
  auto* const there = both.room.take<float>(static_cast<int64_t>(scales.size()));
  both.room.run([&] { ops::quantize_fp8_cuda(both.call, scheme, codes, there); });
  return same_bits(codes, packed) && same_bits(there, scales) && both.near(sums);
}

constexpr ops::IntScheme kSearchedTensor{
    .bits = 4, .symmetric = false, .mse_search = true, .granularity = ops::Granularity::tensor};
constexpr ops::IntScheme kSearchedGroups{.bits = 3, .mse_search = true, .group_size = 24};
constexpr ops::CodebookScheme kNested{ops::Codebook::nf4, 2, true};
constexpr ops::MxScheme kFactors{ops::MxElement::e2m1, ops::MxRounding::even, true};

TEST("simt: quantization gives the bytes of the CPU") {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{9, 65}, {1, 1}, {33, 8}}) {
    CHECK(integers_are_right(kSearchedTensor, rows, cols));
    CHECK(integers_are_right(kSearchedGroups, rows, cols));
    for (const ops::Granularity granularity :
         {ops::Granularity::tensor, ops::Granularity::row, ops::Granularity::column, ops::Granularity::group})
      for (const int bits : {2, 5, 8, 16})
        CHECK(integers_are_right(
            {.bits = bits, .symmetric = bits == 5, .granularity = granularity, .group_size = 32}, rows,
            cols));
    CHECK(books_are_right(kNested, rows, cols));
    CHECK(books_are_right({ops::Codebook::fp4, 33}, rows, cols));
    CHECK(books_are_right({ops::Codebook::dynamic8, 32}, rows, cols));
    CHECK(mx_is_right(kFactors, rows, cols));
    CHECK(mx_is_right({ops::MxElement::int8, ops::MxRounding::nearest, false}, rows, cols));
    CHECK(fp8_is_right({ops::Float8::e4m3, false}, rows, cols));
    CHECK(fp8_is_right({ops::Float8::e5m2, true, DType::bfloat16}, rows, cols));
    CHECK(fp8_is_right({ops::Float8::e4m3, false, DType::float16}, rows, cols));
  }
}

TEST("simt: quantization is right in every order of threads, and needs each barrier") {
  require_each_sync(__FILE__, __LINE__, {[] { return integers_are_right(kSearchedTensor, 300, 3); }});
  require_each_sync(__FILE__, __LINE__, {[] { return books_are_right(kNested, 30, 43); }});
  require_each_sync(__FILE__, __LINE__, {[] { return mx_is_right(kFactors, 3, 70); }});
}

bool sums_are_right() {
  DeviceRoom room;
  const std::vector<float> a = values_of(3000, 5);
  const std::vector<float> b = values_of(3000, 6);
  const ops::Difference expected = ops::compare(serial(), a.data(), b.data(), 3000);
  auto* const result = room.take<ops::Difference>(1);
  const float* const there[] = {room.copy(a), room.copy(b)};
  auto* const workspace = room.take<std::byte>(ops::compare_workspace());
  room.run([&] { ops::compare_cuda(nullptr, there[0], there[1], 3000, workspace, result); });
  return std::abs(result->error - expected.error) <= 1e-12 * expected.error &&
         std::abs(result->reference - expected.reference) <= 1e-12 * expected.reference &&
         result->non_finite == expected.non_finite;
}

TEST("simt: sums of squares are right in every order of threads, and need their barrier") {
  require_each_sync(__FILE__, __LINE__, {sums_are_right});
}

}  // namespace
