// Large dense products by the vendor's library, for which csrc/simt/cublaslt stands in.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "core/attempt.h"
#include "cuda/cublaslt/library.h"
#include "cuda/cublaslt/products.h"
#include "cuda/runtime/device.h"
#include "device_queue.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "simt/runtime/controls.h"

namespace {

using namespace quantaria;
using cuda::RuntimeDevice;
using test::contains;
using test::message_of;
using test::on_queue;

constexpr const char* kStandin = QUANTARIA_CUBLASLT_STANDIN;

/// An environment variable, for as long as this lives.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

Setting fault(const char* what) { return {"QUANTARIA_STANDIN_FAULT", what}; }

/// A device whose process uses the library's stand-in: that is settled by the first product of a test.
std::unique_ptr<RuntimeDevice> device_with_library() {
  static const cuda::Kernels kernels{};
  static const Setting library("QUANTARIA_CUBLASLT", kStandin);
  simt::runtime::become({});
  return std::make_unique<RuntimeDevice>(std::move(cuda::discover("80-real").usable.at(0)), kernels);
}

uint16_t bits_of(DType dtype, float value) {
  return dtype == DType::float16 ? numerics::half_from_float(value) : numerics::bfloat16_from_float(value);
}

float value_at(DType dtype, const std::vector<std::byte>& bytes, int64_t i) {
  if (dtype == DType::float32) {
    float value = 0;
    std::memcpy(&value, &bytes[static_cast<size_t>(i) * 4], 4);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, &bytes[static_cast<size_t>(i) * 2], 2);
  return dtype == DType::float16 ? numerics::float_from_half(bits) : numerics::float_from_bfloat16(bits);
}

/// Elements at the head of each row of a tensor that are not of the matrix: it begins at 16 bytes, aligned no
/// better.
constexpr int64_t kHead = 8;

/// Rows on the device, further apart than they are long, and what was put there.
struct Rows {
  Tensor tensor;
  std::vector<std::byte> bytes;
  int64_t stride;

  float at(int64_t row, int64_t i) const { return value_at(tensor.dtype, bytes, row * stride + kHead + i); }
  ConstMatrix matrix(int64_t rows, int64_t cols) const {
    return {tensor.data() + kHead * size_of(tensor.dtype), tensor.dtype, rows, cols, stride, 1};
  }
};

Rows rows_on(Device& device, DType dtype, int64_t rows, int64_t stride, uint32_t seed) {
  Rows made{empty(device, dtype, {rows, stride}), {}, stride};
  made.bytes.resize(static_cast<size_t>(made.tensor.bytes()));
  uint32_t state = seed;
  for (int64_t i = 0; i < rows * stride; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(state >> 8) * 0x1p-23f - 1;
    if (dtype == DType::float32) {
      std::memcpy(&made.bytes[static_cast<size_t>(i) * 4], &value, 4);
    } else {
      const uint16_t bits = bits_of(dtype, value);
      std::memcpy(&made.bytes[static_cast<size_t>(i) * 2], &bits, 2);
    }
  }
  device.enqueue({}, {made.tensor}, [&device, &made] {
    device.copy_in(made.bytes.data(), made.tensor.data(), made.tensor.bytes());
  });
  CHECK(on_queue(device, [] {}) == nullptr);
  return made;
}

struct Shape3 {
  int64_t m, n, k;
};

constexpr int64_t kColumnsHeld = 31;  // against float64, the first and the last among them

/// c [m, n] = a [m, k] b [k, n] + bias on a device, none of whose rows lie next to each other.
struct Product {
  Shape3 shape;
  bool along_k;  // b's rows run along k, else along n
  Rows a, b;
  std::optional<Rows> bias;
  Tensor c;
  int64_t c_stride;

  Product(Device& device, const Shape3& size, DType dtype, DType result, bool b_along_k, bool with_bias)
      : shape(size), along_k(b_along_k), c_stride(kHead + size.n) {
    a = rows_on(device, dtype, size.m, kHead + size.k, 1);
    b = b_along_k ? rows_on(device, dtype, size.n, kHead + size.k + 8, 2)
                  : rows_on(device, dtype, size.k, kHead + size.n + 8, 2);
    if (with_bias) bias = rows_on(device, result, 1, kHead + size.n, 3);
    c = empty(device, result, {size.m, c_stride});
  }

  /// Another result, of which nothing is known.
  void renew() { c = empty(*c.device, c.dtype, c.shape); }

  ConstMatrix right() const {
    if (!along_k) return b.matrix(shape.k, shape.n);
    const ConstMatrix stored = b.matrix(shape.n, shape.k);
    return {stored.data, stored.dtype, shape.k, shape.n, 1, stored.row_stride};
  }
  float right_at(int64_t p, int64_t j) const { return along_k ? b.at(j, p) : b.at(p, j); }

  void multiply() const {
    auto& device = static_cast<RuntimeDevice&>(*c.device);
    device.enqueue({a.tensor, b.tensor}, {c}, [this, &device] {
      std::optional<ConstMatrix> added;
      if (bias) added = bias->matrix(1, shape.n);
      if (!device.multiply_by_library(
              a.matrix(shape.m, shape.k), right(), added ? &*added : nullptr,
              {c.data() + kHead * size_of(c.dtype), c.dtype, shape.m, shape.n, c_stride, 1}))
        fail(ErrorCode::argument, "not a product for the library");
    });
  }

  struct Reading {
    std::vector<std::byte> bytes;
    std::shared_ptr<const Error> failure;
  };
  Reading read() const {
    Reading found;
    found.bytes.resize(static_cast<size_t>(c.bytes()));
    found.failure = on_queue(*c.device, [&] {
      if (c.storage->failure()) throw Error(*c.storage->failure());
      c.device->copy_out(c.data(), found.bytes.data(), c.bytes());
    });
    return found;
  }

  /// Every element is written and nothing between the rows; 61 columns, the first and the last among them,
  /// are within the bound of float32 sums in any order, rounded once.
  bool is_right(const Reading& found) const {
    if (found.failure) {
      test::report(__FILE__, __LINE__, found.failure->what());
      return false;
    }
    const double unit = c.dtype == DType::float32 ? 0x1p-24 : c.dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
    for (int64_t i = 0; i < shape.m; ++i) {
      for (int64_t j = 0; j < c_stride; ++j)
        if (std::isnan(value_at(c.dtype, found.bytes, i * c_stride + j)) != (j < kHead)) {
          test::report(__FILE__, __LINE__,
                       "c(" + test::show(i) + ", " + test::show(j) + ") is not as it should be");
          return false;
        }
      for (int64_t s = 0; s < kColumnsHeld; ++s) {
        const int64_t j = s * (shape.n - 1) / (kColumnsHeld - 1);
        double sum = bias ? double{bias->at(0, j)} : 0;
        double magnitude = std::abs(sum);
        for (int64_t p = 0; p < shape.k; ++p) {
          const double term = double{a.at(i, p)} * double{right_at(p, j)};
          sum += term;
          magnitude += std::abs(term);
        }
        const double got = double{value_at(c.dtype, found.bytes, i * c_stride + kHead + j)};
        const double bound =
            4 * 0x1p-24 * std::sqrt(static_cast<double>(shape.k) + 1) * magnitude + unit * std::abs(sum);
        if (!(std::abs(got - sum) <= bound)) {
          test::report(__FILE__, __LINE__,
                       "c(" + test::show(i) + ", " + test::show(j) + ") is " + test::show(got) +
                           ", expected " + test::show(sum) + " +- " + test::show(bound));
          return false;
        }
      }
    }
    return true;
  }
};

constexpr Shape3 kDeep{65, 3720, 4456};  // the stand-in needs a workspace for it
constexpr Shape3 kWide{136, 4104, 1928};

TEST(
    "cublaslt: products of every dtype, orientation and bias are within the bound, with strides that have "
    "gaps") {
  const auto device = device_with_library();
  const std::string log = std::filesystem::temp_directory_path() / "quantaria_standin_log";
  std::filesystem::remove(log);
  const Setting logged("QUANTARIA_STANDIN_LOG", log);
  struct Kind {
    Shape3 shape;
    DType dtype, result;
    bool along_k, with_bias;
  };
  const Kind kinds[] = {{kDeep, DType::float16, DType::float16, true, true},
                        {kDeep, DType::bfloat16, DType::float32, false, false},
                        {kWide, DType::bfloat16, DType::bfloat16, false, true},
                        {kWide, DType::float16, DType::float32, true, true}};
  for (const Kind& kind : kinds) {
    const Product product(*device, kind.shape, kind.dtype, kind.result, kind.along_k, kind.with_bias);
    product.multiply();
    const Product::Reading once = product.read();
    CHECK(product.is_right(once));
    product.multiply();
    CHECK(product.read().bytes == once.bytes);
  }
  std::ifstream lines(log);
  std::vector<std::string> calls;
  for (std::string line; std::getline(lines, line);) calls.push_back(line);
  CHECK_EQ(calls.size(), size_t{8});
  CHECK_EQ(
      calls.at(0),
      R"({"m":65,"n":3720,"k":4456,"factors":"float16","result":"float16","bias":true,"workspace":967200})");
  CHECK_EQ(
      calls.at(2),
      R"({"m":65,"n":3720,"k":4456,"factors":"bfloat16","result":"float32","bias":false,"workspace":967200})");
  CHECK_EQ(
      calls.at(4),
      R"({"m":136,"n":4104,"k":1928,"factors":"bfloat16","result":"bfloat16","bias":true,"workspace":0})");
  CHECK(on_queue(*device, [&] { device->finish(); }) == nullptr);
  CHECK_EQ(device->memory().live_blocks, 0);
  std::filesystem::remove(log);
}

TEST("cublaslt: a graph does the product at each launch, and keeps its workspace") {
  const auto device = device_with_library();
  const Product product(*device, kDeep, DType::bfloat16, DType::bfloat16, true, false);
  const int64_t before = device->memory().live_bytes;
  std::shared_ptr<cuda::Graph> graph;
  device->open_capture();
  CHECK(on_queue(*device, [&] { device->begin_capture(); }) == nullptr);
  product.multiply();
  CHECK(on_queue(*device, [&] { graph = device->end_capture(); }) == nullptr);
  CHECK_EQ(device->memory().live_bytes - before, kDeep.m * kDeep.n * 4);
  CHECK(std::isnan(value_at(DType::bfloat16, product.read().bytes, kHead)));  // noted down, not done
  CHECK(on_queue(*device, [&] { graph->launch(); }) == nullptr);
  CHECK(product.is_right(product.read()));
  graph.reset();
  CHECK_EQ(device->memory().live_bytes, before);
}

TEST("cublaslt: a failure is told with its reason and its product, and the device goes on") {
  const auto device = device_with_library();
  Product product(*device, kWide, DType::bfloat16, DType::bfloat16, true, false);
  const auto failure_with = [&](const char* what, ErrorCode code) {
    const Setting set = fault(what);
    product.renew();
    product.multiply();
    return message_of(product.read().failure, code);
  };
  CHECK(contains(failure_with("create", ErrorCode::cuda), "cuda:0: cuBLASLt 13.0.0 ("));
  CHECK(contains(failure_with("create", ErrorCode::cuda),
                 "libcublaslt_standin.so) does not take it: CUBLAS_STATUS_NOT_INITIALIZED"));
  for (const char* what : {"choose", "none"})
    CHECK(contains(failure_with(what, ErrorCode::unsupported),
                   "cuda:0: cuBLASLt 13.0.0: it has no kernel for a product of this shape: "
                   "CUBLAS_STATUS_NOT_SUPPORTED (without QUANTARIA_CUBLASLT, built-in kernels do it)"));
  CHECK(contains(failure_with("multiply", ErrorCode::cuda), "multiplying: CUBLAS_STATUS_EXECUTION_FAILED"));
  product.renew();
  product.multiply();
  CHECK(product.is_right(product.read()));
}

TEST("cublaslt: a product that breaks the device is named by whatever comes next") {
  const auto device = device_with_library();
  const Product product(*device, kWide, DType::bfloat16, DType::bfloat16, true, false);
  {
    const Setting set = fault("work");
    product.multiply();
    CHECK(on_queue(*device, [] {}) == nullptr);
  }
  product.multiply();
  const std::string cause = message_of(product.read().failure, ErrorCode::cuda);
  CHECK(contains(cause, "cuda:0 broke in `multiply` (cublaslt_test.cc:"));
  CHECK(contains(cause, "the product goes wrong"));
}

TEST("cublaslt: a library that cannot be had is refused with the reason") {
  const auto refusal = [](const std::string& setting) {
    return message_of(failure_of([&] { (void)cuda::cublaslt::load(setting); }), ErrorCode::native_load);
  };
  CHECK(contains(refusal("/nowhere/libcublasLt.so"), "QUANTARIA_CUBLASLT: /nowhere/libcublasLt.so: "));
  const std::string text = std::filesystem::temp_directory_path() / "quantaria_no_library";
  std::ofstream(text)
      << "a text, not a library; it is longer than the header of one, which is looked at first";
  CHECK(contains(refusal(text), "quantaria_no_library: invalid ELF header"));
  std::filesystem::remove(text);
  CHECK(contains(refusal("libm.so.6"), "is no cuBLASLt that can be used: it has no cublasLtGetVersion"));
  {
    const Setting set = fault("version");
    CHECK(contains(refusal(kStandin), "libcublaslt_standin.so is cuBLASLt 11.9.2, 12 or 13 is needed"));
  }
  const cuda::cublaslt::Library found = cuda::cublaslt::load(kStandin);
  CHECK_EQ(found.version, "13.0.0");
  CHECK_EQ(found.path, kStandin);
}

/// A product that is just large enough, of which one thing is changed.
struct Candidate {
  ConstMatrix a, b, bias;
  Matrix c;
  bool with_bias = true;

  explicit Candidate(DType dtype = DType::bfloat16, int64_t m = 64, int64_t n = 4096, int64_t k = 4096) {
    const auto place = [](uintptr_t at) { return reinterpret_cast<std::byte*>(at); };
    a = {place(0x1000), dtype, m, k, k, 1};
    b = {place(0x2000), dtype, k, n, 1, k};
    bias = {place(0x3000), dtype, 1, n, n, 1};
    c = {place(0x4000), dtype, m, n, n, 1};
  }
  bool taken() const { return cuda::cublaslt::takes(a, b, with_bias ? &bias : nullptr, c); }
};

bool taken_with(const std::function<void(Candidate&)>& change) {
  Candidate candidate;
  change(candidate);
  return candidate.taken();
}

TEST("cublaslt: size, dtypes, strides and alignment decide, and nothing else") {
  CHECK(Candidate().taken());
  CHECK(Candidate(DType::float16).taken());
  CHECK(taken_with([](Candidate& p) { p.with_bias = false; }));
  CHECK(taken_with([](Candidate& p) { p.c.dtype = p.bias.dtype = DType::float32; }));
  CHECK(taken_with([](Candidate& p) { p.a.row_stride += 8; }));
  CHECK(taken_with([](Candidate& p) { p.a.data += 16; }));
  CHECK(taken_with([](Candidate& p) { p.c.row_stride += 8; }));
  CHECK(taken_with([](Candidate& p) { p.b.row_stride = 4104, p.b.col_stride = 1; }));
  // Too small: too few rows, or operations.
  CHECK(!Candidate(DType::bfloat16, 63, 1 << 14, 1 << 14).taken());
  CHECK(!Candidate(DType::bfloat16, 64, 4096, 4088).taken());
  CHECK(!Candidate(DType::bfloat16, 64, 4088, 4096).taken());
  CHECK(!Candidate(DType::bfloat16, 1 << 20, 4096, 0).taken());
  // Dtypes.
  CHECK(!Candidate(DType::float32).taken());
  CHECK(!taken_with([](Candidate& p) { p.b.dtype = DType::float16; }));
  CHECK(!taken_with([](Candidate& p) { p.c.dtype = p.bias.dtype = DType::float16; }));
  CHECK(!taken_with([](Candidate& p) { p.bias.dtype = DType::float32; }));
  CHECK(!taken_with([](Candidate& p) { p.c.dtype = DType::float32; }));
  // Strides.
  CHECK(!taken_with([](Candidate& p) { p.a.row_stride = 1, p.a.col_stride = 64; }));
  CHECK(!taken_with([](Candidate& p) { p.a.row_stride = 0; }));
  CHECK(!taken_with([](Candidate& p) { p.a.row_stride += 4; }));
  CHECK(!taken_with([](Candidate& p) { p.b.row_stride = 2; }));
  CHECK(!taken_with([](Candidate& p) { p.b.col_stride += 1; }));
  CHECK(!taken_with([](Candidate& p) { p.c.row_stride += 4; }));
  CHECK(!taken_with([](Candidate& p) { p.c.col_stride = 2; }));
  CHECK(!taken_with([](Candidate& p) { p.bias.col_stride = 2; }));
  CHECK(!taken_with([](Candidate& p) { p.a.row_stride = int64_t{1} << 31; }));
  // Places.
  CHECK(!taken_with([](Candidate& p) { p.a.data += 8; }));
  CHECK(!taken_with([](Candidate& p) { p.b.data += 2; }));
  CHECK(!taken_with([](Candidate& p) { p.c.data += 8; }));
  CHECK(!taken_with([](Candidate& p) { p.bias.data += 4; }));
}

}  // namespace
