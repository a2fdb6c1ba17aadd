#include <cstring>

#include "quantize_test.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

struct Result {
  std::vector<uint8_t> packed;
  std::vector<uint32_t> scales;
  std::vector<int32_t> zeros;
  ErrorSums sums;

  bool operator==(const Result& other) const {
    return packed == other.packed && scales == other.scales && zeros == other.zeros &&
           sums.error == other.sums.error && sums.weight == other.sums.weight;
  }
};

Result run(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme) {
  const ConstantsShape shape = constants_shape(scheme, w.rows, w.cols);
  const auto constants = static_cast<size_t>(shape.rows * shape.cols);
  Result result;
  result.packed.assign(static_cast<size_t>(w.rows * packed_row_bytes(w.cols, scheme.bits)), 0xa5);
  std::vector<float> scales(constants, std::nanf(""));
  result.zeros.assign(scheme.symmetric ? 0 : constants, -99);
  quantize_int(pool, w, scheme,
               {result.packed.data(), scales.data(), scheme.symmetric ? nullptr : result.zeros.data()},
               &result.sums);
  result.scales = bits_of_all(scales);
  return result;
}

Result run(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme) {
  Result result;
  result.packed.assign(static_cast<size_t>(packed_row_bytes(w.rows * w.cols, 4)), 0xa5);
  std::vector<float> absmax(static_cast<size_t>(block_count(scheme, w.rows, w.cols)), std::nanf(""));
  quantize_codebook(pool, w, scheme, {result.packed.data(), absmax.data(), nullptr, nullptr, nullptr},
                    &result.sums);
  result.scales = bits_of_all(absmax);
  return result;
}

/// A part of a stack stored [in, out]: its rows lie among those of others, at an odd address.
struct Stacked {
  explicit Stacked(const Weight& w) : weight(w), stride(w.rows + 5) {
    bytes.assign(static_cast<size_t>(w.cols * stride * 2 + 1), 0x7f);
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t c = 0; c < w.cols; ++c)
        std::memcpy(&bytes[static_cast<size_t>(1 + (c * stride + r) * 2)],
                    &w.stored[static_cast<size_t>((r * w.cols + c) * 2)], 2);
  }
  ConstMatrix view() const {
    return {reinterpret_cast<const std::byte*>(bytes.data() + 1),
            weight.dtype,
            weight.rows,
            weight.cols,
            1,
            stride};
  }
  const Weight& weight;
  int64_t stride;
  std::vector<uint8_t> bytes;
};

template <class Scheme>
void check_same_bits(const Weight& w, const Scheme& scheme) {
  const Stacked stacked(w);
  ThreadPool one(1);
  const Result expected = run(one, w.view(), scheme);
  on_every_machine([&](ThreadPool& pool) {
    CHECK(run(pool, w.view(), scheme) == expected);
    CHECK(run(pool, stacked.view(), scheme) == expected);
  });
}

// Around the sixteen rows of a panel, the rows of a task and the sixteen words that are transposed together.
constexpr Shape kPanelShapes[] = {{2, 7},   {15, 64},  {16, 64},   {17, 129},  {31, 256},
                                  {48, 20}, {255, 96}, {256, 200}, {257, 512}, {530, 72}};

TEST("integers of a weight stored [in, out] have the bits, constants and errors of one stored [out, in]") {
  for (const Shape shape : kPanelShapes)
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      const Weight w = make_weight(shape.rows, shape.cols, dtype, false);
      for (const int bits : {2, 3, 4, 7, 8})
        for (const bool symmetric : {true, false})
          for (const int64_t group : {int64_t{32}, int64_t{40}, int64_t{128}})
            check_same_bits(w, IntScheme{.bits = bits, .symmetric = symmetric, .group_size = group});
      for (const DType scale_dtype : {DType::float16, DType::bfloat16})
        check_same_bits(w, IntScheme{.full_range = true, .group_size = 32, .scale_dtype = scale_dtype});
      check_same_bits(w, IntScheme{.bits = 8, .granularity = Granularity::row});
      check_same_bits(w, IntScheme{.bits = 5, .symmetric = false, .granularity = Granularity::row});
    }
}

TEST("code books of a weight stored [in, out] give the bits, absmax and errors of one stored [out, in]") {
  for (const Shape shape : kPanelShapes)
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      const Weight w = make_weight(shape.rows, shape.cols, dtype, false);
      for (const Codebook book : {Codebook::nf4, Codebook::fp4, Codebook::e3m0})
        for (const int64_t block : {int64_t{8}, int64_t{24}, int64_t{32}, int64_t{64}, int64_t{256}})
          check_same_bits(w, CodebookScheme{book, block, false});
    }
}

TEST("a NaN or infinity in any lane of a weight stored [in, out] is found") {
  for (const int64_t row : {0, 15, 16, 40, 47, 48})
    for (const float bad : {std::nanf(""), -std::nanf(""), HUGE_VALF, -HUGE_VALF})
      for (const DType dtype : {DType::bfloat16, DType::float16}) {
        Weight w = make_weight(49, 64, dtype, true);
        w.values[static_cast<size_t>(row * 64 + 33)] = bad;
        store_values(w);
        const std::string place = "at row " + std::to_string(row) + ", column 33";
        on_every_machine([&](ThreadPool& pool) {
          for (const bool symmetric : {true, false})
            CHECK(error_of([&] {
                    run(pool, w.view(), IntScheme{.symmetric = symmetric, .group_size = 32});
                  }).find(place) != std::string::npos);
          CHECK(error_of([&] { run(pool, w.view(), CodebookScheme{}); }).find(place) != std::string::npos);
        });
      }
}

}  // namespace
