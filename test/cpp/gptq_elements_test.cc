#include <set>

#include "gptq_test.h"
#include "numerics/code_books.h"

/// GPTQ on the grids of code books, fp8 and MX.
namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

enum class Kind : uint8_t { codebook, fp8, mx };

struct Scheme {
  std::string name;
  Kind kind;
  CodebookScheme codebook = {};
  Fp8Scheme fp8 = {};
  MxScheme mx = {};
};

/// A stored form, whatever its kind, and what it stands for.
struct Result {
  std::vector<uint8_t> packed;
  std::vector<float> floats;   // absmax values, scales, nested scales, or factors before MX scales
  std::vector<uint8_t> bytes;  // codes of absmax values, or MX scales
  float offset = 0;
  std::vector<float> values;
  GptqReport report;
};

/// GPTQ with the products given, else round-to-nearest; outputs poisoned.
Result run(ThreadPool& pool, const Weight& w, const Scheme& scheme, const std::vector<float>* products,
           const GptqOptions& options = {}) {
  Result result;
  result.values.assign(w.values.size(), std::nanf(""));
  auto* const values = reinterpret_cast<std::byte*>(result.values.data());
  const GptqInput input{w.view(), products == nullptr ? nullptr : products->data(), 2};
  const auto allocate = [&](int64_t packed, int64_t floats, int64_t bytes) {
    result.packed.assign(static_cast<size_t>(packed), 0xa5);
    result.floats.assign(static_cast<size_t>(floats), std::nanf(""));
    result.bytes.assign(static_cast<size_t>(bytes), 0xa5);
  };
  if (scheme.kind == Kind::codebook) {
    const CodebookScheme& s = scheme.codebook;
    const int64_t blocks = block_count(s, w.rows, w.cols);
    allocate(packed_row_bytes(w.rows * w.cols, s.book == Codebook::dynamic8 ? 8 : 4),
             s.double_quant ? (blocks + kNestedBlock - 1) / kNestedBlock : blocks,
             s.double_quant ? blocks : 0);
    float* const floats = result.floats.data();
    const CodebookStored to{result.packed.data(), s.double_quant ? nullptr : floats, result.bytes.data(),
                            s.double_quant ? floats : nullptr, &result.offset};
    if (products != nullptr)
      result.report = quantize_gptq(pool, input, s, to, options, scratch);
    else
      quantize_codebook(pool, w.view(), s, to);
    dequantize_codebook(pool, s, {to.packed, to.absmax, to.absmax_codes, to.absmax_scales, to.absmax_offset},
                        w.rows, w.cols, DType::float32, values);
  } else if (scheme.kind == Kind::fp8) {
    allocate(w.rows * packed_row_bytes(w.cols, 8), scheme.fp8.per_row ? w.rows : 1, 0);
    if (products != nullptr)
      result.report = quantize_gptq(pool, input, scheme.fp8,
                                    Fp8Stored{result.packed.data(), result.floats.data()}, options, scratch);
    else
      quantize_fp8(pool, w.view(), scheme.fp8, result.packed.data(), result.floats.data());
    dequantize_fp8(pool, scheme.fp8, result.packed.data(), result.floats.data(), w.rows, w.cols,
                   DType::float32, values);
  } else {
    const int64_t blocks = (w.cols + kMxBlock - 1) / kMxBlock;
    allocate(w.rows * packed_row_bytes(w.cols, mx_element_bits(scheme.mx.element)),
             scheme.mx.pre_scale ? w.rows : 0, w.rows * blocks);
    float* const factors = scheme.mx.pre_scale ? result.floats.data() : nullptr;
    const MxStored to{result.packed.data(), result.bytes.data(), factors};
    if (products != nullptr)
      result.report = quantize_gptq(pool, input, scheme.mx, to, options, scratch);
    else
      quantize_mx(pool, w.view(), scheme.mx, to.packed, to.scales, to.pre_scale);
    dequantize_mx(pool, scheme.mx, to.packed, to.scales, to.pre_scale, w.rows, w.cols, DType::float32,
                  values);
  }
  return result;
}

bool same(const Result& a, const Result& b) {
  return a.packed == b.packed && bits_of_all(a.floats) == bits_of_all(b.floats) && a.bytes == b.bytes &&
         a.offset == b.offset;
}

std::vector<Scheme> code_books(int64_t block) {
  std::vector<Scheme> schemes;
  for (const Codebook book : {Codebook::nf4, Codebook::fp4, Codebook::e3m0, Codebook::dynamic8})
    schemes.push_back({"book " + show(static_cast<int>(book)) + " block " + show(block),
                       Kind::codebook,
                       {.book = book, .block_size = block}});
  return schemes;
}

std::vector<Scheme> small_floats() {
  std::vector<Scheme> schemes;
  for (const Float8 format : {Float8::e4m3, Float8::e5m2})
    for (const bool per_row : {true, false})
      schemes.push_back({"fp8 " + show(static_cast<int>(format)) + (per_row ? " row" : " tensor"),
                         Kind::fp8,
                         {},
                         {format, per_row}});
  for (const MxElement element :
       {MxElement::e4m3, MxElement::e5m2, MxElement::e3m2, MxElement::e2m3, MxElement::e2m1, MxElement::int8})
    for (const bool pre_scale : {false, true})
      schemes.push_back({"mx " + show(static_cast<int>(element)) + (pre_scale ? " pre-scaled" : ""),
                         Kind::mx,
                         {},
                         {},
                         {.element = element, .pre_scale = pre_scale}});
  return schemes;
}

std::vector<Scheme> all_of(const std::vector<std::vector<Scheme>>& lists) {
  std::vector<Scheme> all;
  for (const std::vector<Scheme>& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

/// A weight without rows of special values.
Weight plain_weight(int64_t rows, int64_t in, uint32_t seed) {
  Weight w = make_weight(rows + 10, in, DType::float32, false, seed);
  w.values.erase(w.values.begin(), w.values.begin() + 10 * in);
  w.rows = rows;
  store_values(w);
  return w;
}

double lost_energy(const Weight& w, const std::vector<float>& values, const Square& products) {
  std::vector<double> d(w.values.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<double>(w.values[i]) - values[i];
  return energy(d, products, w.cols);
}

TEST("gptq of code books, fp8 and MX with a diagonal Hessian is round-to-nearest bit for bit") {
  for (const test::Shape shape : {test::Shape{1, 1}, {17, 127}, {33, 160}, {0, 64}, {5, 0}}) {
    Weight w = make_weight(shape.rows, shape.cols, DType::bfloat16, shape.cols % 2 == 0);
    // Nothing made up for, added to -0, is 0.
    for (float& value : w.values) value += 0.0f;
    store_values(w);
    std::vector<float> products(static_cast<size_t>(w.cols * w.cols));
    for (int64_t c = 0; c < w.cols; ++c)
      products[static_cast<size_t>(c * w.cols + c)] = static_cast<float>(1 + c * 7 % 11);
    // Blocks that make up rows, span rows, and are longer than a product's columns.
    for (const Scheme& scheme :
         all_of({code_books(32), code_books(48), code_books(160), code_books(1000), small_floats()})) {
      ThreadPool one(1);
      const Result expected = run(one, w, scheme, nullptr);
      on_every_machine([&](ThreadPool& pool) {
        for (const bool act_order : {false, true}) {
          const Result actual = run(pool, w, scheme, &products, {.act_order = act_order, .block_size = 64});
          if (!same(actual, expected)) report(__FILE__, __LINE__, scheme.name + ", columns " + show(w.cols));
        }
      });
    }
  }
}

/// Values of a grid in float64, rising, for a block whose constant is 1.
std::vector<double> grid_values(const Scheme& scheme) {
  std::set<double> values;
  const auto add_book = [&](const numerics::Book16& book) {
    values.insert(book.values, book.values + book.size);
  };
  // Sign, `exponent` bits of bias `bias`, `mantissa` bits; up to `largest`.
  const auto add_floats = [&](int exponent, int mantissa, int bias, double largest) {
    for (int e = 0; e < 1 << exponent; ++e)
      for (int m = 0; m < 1 << mantissa; ++m) {
        const double fraction = std::ldexp(m, -mantissa) + (e > 0 ? 1 : 0);
        const double value = std::ldexp(fraction, std::max(e, 1) - bias);
        if (value <= largest) values.insert({value, -value});
      }
  };
  if (scheme.kind == Kind::codebook) {
    add_book(scheme.codebook.book == Codebook::nf4   ? numerics::kNf4
             : scheme.codebook.book == Codebook::fp4 ? numerics::kFp4
                                                     : numerics::kE3M0);
  } else if (scheme.kind == Kind::fp8) {
    scheme.fp8.format == Float8::e4m3 ? add_floats(4, 3, 7, 448) : add_floats(5, 2, 15, 57344);
  } else {
    add_floats(2, 1, 1, 6);  // e2m1
  }
  return {values.begin(), values.end()};
}

double nearest_in(const std::vector<double>& grid, double value) {
  return *std::min_element(grid.begin(), grid.end(),
                           [&](double a, double b) { return std::abs(a - value) < std::abs(b - value); });
}

/// As the paper has it, column by column in order; `fixed`: round-to-nearest, for the scales of fp8.
std::vector<float> by_definition(const Weight& w, const Square& h, const Scheme& scheme,
                                 const Result& fixed) {
  const int64_t in = w.cols;
  const auto index = [](int64_t i) { return static_cast<size_t>(i); };
  double mean = 0;
  for (int64_t c = 0; c < in; ++c) mean += h[index(c * in + c)] / static_cast<double>(in);
  Square damped = h;
  for (int64_t c = 0; c < in; ++c) damped[index(c * in + c)] += 0.01 * mean;
  const Square lower = lower_factor(inverse_of(damped, in), in);
  const std::vector<double> grid = grid_values(scheme);
  const int64_t block = scheme.kind == Kind::codebook ? scheme.codebook.block_size : kMxBlock;
  std::vector<float> values(w.values.size());
  for (int64_t r = 0; r < w.rows; ++r) {
    std::vector<double> row(w.values.begin() + r * in, w.values.begin() + (r + 1) * in);
    double scale =
        scheme.kind == Kind::fp8 ? static_cast<double>(fixed.floats[index(scheme.fp8.per_row ? r : 0)]) : 0;
    for (int64_t c = 0; c < in; ++c) {
      if (scheme.kind != Kind::fp8 && c % block == 0) {
        float absmax = 0;
        for (int64_t j = c; j < std::min(in, c + block); ++j)
          absmax = std::max(absmax, std::abs(static_cast<float>(row[index(j)])));
        scale = scheme.kind == Kind::codebook ? static_cast<double>(absmax)
                                              : std::exp2(std::floor(std::log2(absmax)) - 2);
      }
      const double value = nearest_in(grid, row[index(c)] / scale) * scale;
      values[index(r * in + c)] = static_cast<float>(value);
      const double error = (row[index(c)] - value) / lower[index(c * in + c)];
      for (int64_t j = c; j < in; ++j) row[index(j)] -= error * lower[index(j * in + c)];
    }
  }
  return values;
}

TEST("gptq of code books, fp8 and MX gives the values of the float64 algorithm but near ties") {
  const int64_t rows = 21;
  const int64_t in = 192;
  const Weight w = plain_weight(rows, in, 5);
  const Square products = products_of(make_states(300, in, 6), in);
  std::vector<Scheme> schemes = small_floats();
  std::erase_if(schemes, [](const Scheme& s) {
    return s.kind == Kind::mx && (s.mx.element != MxElement::e2m1 || s.mx.pre_scale);
  });
  for (const Scheme& scheme : all_of({code_books(32), code_books(64), code_books(192), schemes})) {
    if (scheme.kind == Kind::codebook && scheme.codebook.book == Codebook::dynamic8) continue;
    ThreadPool one(1);
    const Result fixed = run(one, w, scheme, nullptr);
    const std::vector<float> expected = by_definition(w, products, scheme, fixed);
    const double allowed = 1.01 * lost_energy(w, expected, products);
    const std::vector<float> floats = as_floats(products);
    on_every_machine([&](ThreadPool& pool) {
      const Result actual = run(pool, w, scheme, &floats);
      int64_t same_rows = 0;
      for (int64_t r = 0; r < rows; ++r) {
        bool close = true;
        for (int64_t c = 0; c < in; ++c) {
          const auto at = static_cast<size_t>(r * in + c);
          close &= std::abs(actual.values[at] - expected[at]) <= 1e-5f * std::abs(expected[at]);
        }
        same_rows += close;
      }
      if (same_rows < rows - 4)
        report(__FILE__, __LINE__,
               scheme.name + ": " + show(same_rows) + " of " + show(rows) + " rows equal");
      const double mine = lost_energy(w, actual.values, products);
      CHECK(mine <= allowed);
      CHECK(std::abs(actual.report.error - mine) <= 1e-5 * mine);
    });
  }
}

TEST("gptq of code books, fp8 and MX loses less of the output than round-to-nearest, in any order") {
  const int64_t in = 160;
  const Weight w = plain_weight(30, in, 9);
  std::vector<Scheme> schemes = all_of({code_books(32), code_books(100), small_floats()});
  for (Scheme scheme : code_books(32)) {
    if (scheme.codebook.book == Codebook::dynamic8) continue;
    scheme.codebook.double_quant = true;
    scheme.name += " double";
    schemes.push_back(scheme);
  }
  for (const int64_t states : {20, 1000}) {
    const Square products = products_of(make_states(states, in, 10, {7}), in);
    const std::vector<float> floats = as_floats(products);
    for (const Scheme& scheme : schemes)
      for (const GptqOptions& options :
           {GptqOptions{}, GptqOptions{.act_order = true}, GptqOptions{.static_groups = true}}) {
        ThreadPool one(1);
        const Result nearest = run(one, w, scheme, nullptr);
        Result first;
        on_every_machine([&](ThreadPool& pool) {
          const Result actual = run(pool, w, scheme, &floats, options);
          const double mine = lost_energy(w, actual.values, products);
          if (!(mine < lost_energy(w, nearest.values, products))) report(__FILE__, __LINE__, scheme.name);
          CHECK(std::abs(actual.report.error - mine) <= 1e-4 * mine);
          CHECK_EQ(actual.report.dead_columns, 1);
          for (int64_t r = 0; r < w.rows; ++r) CHECK_EQ(actual.values[static_cast<size_t>(r * in + 7)], 0.0f);
          if (pool.threads() == 1)
            first = actual;
          else
            CHECK(same(actual, first) && actual.report.error == first.report.error);
        });
      }
  }
}

TEST(
    "gptq of code books, fp8 and MX stays finite near the ends of float32 and refuses NaN with its "
    "position") {
  const Square products = products_of(make_states(30, 140, 15), 140);
  const std::vector<float> floats = as_floats(products);
  for (const Scheme& scheme : all_of({code_books(35), code_books(64), small_floats()})) {
    for (const float scale : {1e38f, 1e-38f, 1e-44f}) {
      Weight w = plain_weight(20, 140, 14);
      for (float& value : w.values) value = std::clamp(value * 20, -3.0f, 3.0f) * scale;
      store_values(w);
      on_every_machine([&](ThreadPool& pool) {
        const Result actual = run(pool, w, scheme, &floats);
        for (const float value : actual.values) CHECK(std::isfinite(value));
      });
    }
    Weight w = plain_weight(40, 140, 12);
    for (const int64_t at : {35 * 140 + 5, 21 * 140 + 69}) w.values[static_cast<size_t>(at)] = std::nanf("");
    store_values(w);
    on_every_machine([&](ThreadPool& pool) {
      CHECK(error_of([&] { run(pool, w, scheme, &floats); }).find("row 21, column 69") != std::string::npos);
    });
  }
}

}  // namespace
