#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "gptq_test.h"
#include "ops/gptq/gptq_cuda.h"
#include "ops/gptq/run_cuda.h"
#include "simt_room.h"

// The kernels of GPTQ but for its Hessians', emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;
using ops::PerProblem;

size_t at(int64_t i) { return static_cast<size_t>(i); }

// -------------------------------------------------------------------------------------------- the factor

/// A run of nothing but a factorisation, of `problems` copies of one matrix.
struct FactorRun {
  FactorRun(DeviceRoom& room, int64_t in, int64_t problems) {
    run.in = in;
    run.problems = problems;
    run.state = room.take<ops::GptqState>(problems);
    run.order = room.take<int32_t>(problems * in);
    run.largest = room.take<float>(problems * in);
    run.hessian = room.take<float>(problems * in * in);
    run.inverse = room.take<float>(problems * 64 * 64);
    cut = {in, 0};
    run.upper = room.take<float>(problems * cut.blocks() * ops::kUpperFloats);
  }
  ops::GptqRun run{};
  ops::BlockCut cut{};
};

bool order_is_right(int64_t in, int64_t whole_group = 0) {
  DeviceRoom room;
  FactorRun f(room, in, 2);
  std::vector<float> products(at(in * in), std::nanf(""));
  std::vector<int32_t> expected(at(in));
  std::iota(expected.begin(), expected.end(), 0);
  const auto diagonal = [](int64_t i) { return static_cast<float>(i * 37 % 11); };
  int32_t dead = 0;
  double sum = 0;
  for (int64_t i = 0; i < in; ++i) {
    products[at(i * (in + 1))] = diagonal(i);
    dead += diagonal(i) == 0;
    sum += double{diagonal(i)};
  }
  const auto largest = [&](int64_t group) {
    if ((group + 1) * whole_group > in) return -1.0f;  // a short one comes last
    float most = 0;
    for (int64_t i = 0; i < whole_group; ++i) most = std::max(most, diagonal(group * whole_group + i));
    return most;
  };
  std::stable_sort(expected.begin(), expected.end(), [&](int32_t a, int32_t b) {
    if (whole_group == 0) return diagonal(a) > diagonal(b);
    const int64_t groups[] = {a / whole_group, b / whole_group};
    if (groups[0] == groups[1]) return diagonal(a) > diagonal(b);
    const float most[] = {largest(groups[0]), largest(groups[1])};
    return most[0] != most[1] ? most[0] > most[1] : groups[0] < groups[1];
  });
  const float* const first = room.copy(products);
  products[at((in - 1) * (in + 1))] = HUGE_VALF;
  const float* const second = room.copy(products);
  room.run([&] { ops::measure_products(nullptr, f.run, {{first, second}}, true, whole_group); });
  const ops::GptqState& state = f.run.state[0];
  return std::equal(expected.begin(), expected.end(), f.run.order) && state.stopped == 0 &&
         state.bad_column == -1 && state.dead_columns == dead &&
         state.mean == (dead < in ? sum / static_cast<double>(in - dead) : 1.0) &&
         f.run.state[1].stopped == 1 && f.run.state[1].bad_column == in - 1;
}

TEST(
    "simt: columns are ordered by falling diagonal, ties to the lower one, and need each barrier; infinities "
    "are told") {
  for (const int64_t in : {1, 31, 256, 300, 513}) CHECK(order_is_right(in));
  for (const int64_t group : {1, 3, 32, 100, 300, 301}) CHECK(order_is_right(300, group));
  require_each_sync(__FILE__, __LINE__, {[] { return order_is_right(300); }});
}

/// R R^T against the matrix, and the inverses of R's triangles, in float64.
bool factor_is_right(int64_t in) {
  DeviceRoom room;
  FactorRun f(room, in, 1);
  const std::vector<float> x = make_states(in + 20, in, static_cast<uint32_t>(in));
  const Square h = products_of(x, in);
  const float* const products = room.copy(as_floats(h));
  constexpr double kDamping = 0.01;
  room.run([&] {
    ops::measure_products(nullptr, f.run, {{products}}, false, 0);
    ops::gather_hessian(nullptr, f.run, {{products}});
    ops::factor_hessian(nullptr, f.run, {{products}}, {{kDamping}});
    ops::invert_triangles(nullptr, f.run, f.cut);
  });
  if (f.run.state[0].stopped != 0) return false;
  const double mean = f.run.state[0].mean;
  const auto r = [&](int64_t i, int64_t j) { return double{f.run.hessian[i * in + j]}; };
  for (int64_t i = 0; i < in; ++i)
    for (int64_t j = i; j < in; ++j) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t k = j; k < in; ++k) {
        sum += r(i, k) * r(j, k);
        magnitude += std::abs(r(i, k) * r(j, k));
      }
      const double expected = h[at(i * in + j)] / mean + (i == j ? kDamping : 0);
      if (!(std::abs(sum - expected) <= 64 * 0x1p-24 * magnitude)) {
        report(__FILE__, __LINE__,
               "R R^T(" + show(i) + ", " + show(j) + ") is " + show(sum) + ", expected " + show(expected));
        return false;
      }
    }
  for (int64_t b = 0; b < f.cut.blocks(); ++b) {
    const ops::BlockRange block = f.cut.block(b);
    const float* const upper = f.run.upper + b * ops::kUpperFloats;
    for (int i = 0; i < ops::kGptqBlock; ++i)
      for (int j = i / 4 * 4; j < ops::kGptqBlock; ++j) {
        const double got = double{upper[ops::upper_place(i, j)]};
        if (i > j || j >= block.cols) {
          if (got != 0) return report(__FILE__, __LINE__, "a triangle's inverse is not one"), false;
          continue;
        }
        double sum = 0;
        double magnitude = 0;
        for (int k = i; k <= j; ++k) {
          const double term = double{upper[ops::upper_place(i, k)]} * r(block.first + k, block.first + j);
          sum += term;
          magnitude += std::abs(term);
        }
        if (!(std::abs(sum - (i == j)) <= 16 * 0x1p-24 * (magnitude + 1))) {
          report(__FILE__, __LINE__, "U R(" + show(i) + ", " + show(j) + ") is " + show(sum));
          return false;
        }
      }
  }
  return true;
}

TEST(
    "simt: the factor in reversed order and the inverses of its triangles are right, and need each barrier") {
  for (const int64_t in : {1, 2, 63, 64, 65, 129, 200}) CHECK(factor_is_right(in));
  require_each_sync(__FILE__, __LINE__, {[] { return factor_is_right(130); }});
}

TEST("simt: blocks are cut so that groups stay whole") {
  for (const int64_t group : {0, 1, 10, 33, 127, 128, 129, 200, 256, 300})
    for (const int64_t in : {1, 100, 128, 129, 256, 600, 601}) {
      const ops::BlockCut cut{in, group};
      int64_t next = 0;
      for (int64_t b = 0; b < cut.blocks(); ++b) {
        const ops::BlockRange block = cut.block(b);
        CHECK_EQ(block.first, next);
        CHECK(block.cols >= 1 && block.cols <= ops::kGptqBlock);
        next += block.cols;
        if (group > 0 && group <= ops::kGptqBlock) CHECK(block.first % group == 0);
        if (group > ops::kGptqBlock) CHECK_EQ(block.first / group, (next - 1) / group);
      }
      CHECK_EQ(next, in);
    }
}

// ------------------------------------------------------------------------------------------------ columns

/// Problems of one shape on the device, and their results.
class DeviceProblems {
 public:
  DeviceProblems(const IntScheme& scheme, const GptqOptions& options) : scheme_(scheme), options_(options) {}

  void add(const Weight& w, const std::vector<float>& products) {
    shape_ = ops::constants_shape(scheme_, w.rows, w.cols);
    rows_ = w.rows;
    in_ = w.cols;
    ConstMatrix view = w.view();
    view.data = reinterpret_cast<const std::byte*>(room_.copy(w.stored));
    const bool indexed =
        options_.act_order && !options_.static_groups && scheme_.granularity == Granularity::group;
    const int64_t constants = shape_.rows * shape_.cols;
    problems_.push_back(
        {{view, room_.copy(products), 2},
         {room_.take<uint8_t>(rows_ * ops::packed_row_bytes(in_, scheme_.bits)), room_.take<float>(constants),
          scheme_.symmetric ? nullptr : room_.take<int32_t>(constants)},
         indexed ? room_.take<int32_t>(in_) : nullptr});
  }

  std::vector<GptqResult> run() {
    int reads = 0;
    const ops::GptqQueue queue{nullptr,
                               [&](int64_t bytes) {
                                 auto* const data = room_.take<std::byte>(bytes);
                                 return std::make_shared<Storage>(nullptr, data, bytes, true);
                               },
                               [&](const std::byte* from, std::byte* host, int64_t bytes) {
                                 ++reads;
                                 std::memcpy(host, from, static_cast<size_t>(bytes));
                               }};
    std::vector<ops::GptqReport> reports;
    room_.run([&] { reports = ops::quantize_int_gptq_cuda(queue, problems_, scheme_, options_); });
    reads_ = reads;
    std::vector<GptqResult> results;
    for (size_t i = 0; i < problems_.size(); ++i) results.push_back(result_of(problems_[i], reports[i]));
    return results;
  }
  int reads() const { return reads_; }

 private:
  GptqResult result_of(const ops::GptqProblem& problem, const ops::GptqReport& report) const {
    GptqResult result;
    const ops::IntStored& to = problem.to;
    const int64_t constants = shape_.rows * shape_.cols;
    result.report = report;
    result.scales.assign(to.scales, to.scales + constants);
    if (to.zeros != nullptr) result.zeros.assign(to.zeros, to.zeros + constants);
    if (problem.group_index != nullptr)
      result.group_index.assign(problem.group_index, problem.group_index + in_);
    ThreadPool pool(1);
    result.codes.assign(at(rows_ * in_), -1);
    ops::unpack_bits(pool, to.packed, ops::packed_row_bytes(in_, scheme_.bits), scheme_.bits, 0,
                     {reinterpret_cast<std::byte*>(result.codes.data()), DType::int32, rows_, in_, in_, 1});
    result.values.assign(at(rows_ * in_), std::nanf(""));
    ops::dequantize_int(pool, scheme_, {to.packed, to.scales, to.zeros, problem.group_index}, rows_, in_,
                        DType::float32, reinterpret_cast<std::byte*>(result.values.data()));
    return result;
  }

  DeviceRoom room_;
  IntScheme scheme_;
  GptqOptions options_;
  ops::ConstantsShape shape_{};
  int64_t rows_ = 0;
  int64_t in_ = 0;
  int reads_ = 0;
  std::vector<ops::GptqProblem> problems_;
};

bool same(const GptqResult& a, const GptqResult& b) {
  return a.codes == b.codes && a.scales == b.scales && a.zeros == b.zeros && a.group_index == b.group_index &&
         a.report.error == b.report.error && a.report.weight == b.report.weight &&
         a.report.damping == b.report.damping && a.report.attempts == b.report.attempts &&
         a.report.dead_columns == b.report.dead_columns;
}

/// Error and energy in the report's unit against float64, and the error against the CPU's.
bool result_is_right(const GptqResult& got, const Weight& w, const Square& h, const GptqResult& cpu) {
  std::vector<double> lost(w.values.size());
  for (size_t i = 0; i < lost.size(); ++i) lost[i] = double{w.values[i]} - got.values[i];
  const double error = energy(lost, h, w.cols);
  const double whole = energy(w.values, h, w.cols);
  const bool right = std::abs(got.report.error - error) <= 1e-4 * error + 1e-9 * whole &&
                     std::abs(got.report.weight - whole) <= 1e-5 * whole &&
                     error <= 1.02 * cpu.report.error + 1e-9 * whole;
  if (!right)
    report(__FILE__, __LINE__,
           show(w.rows) + " x " + show(w.cols) + ": error " + show(got.report.error) + " told, " +
               show(error) + " made, " + show(cpu.report.error) + " by the CPU");
  return right;
}

struct ColumnsCase {
  int64_t rows, in;
  Granularity granularity;
  int64_t group;
  bool symmetric, search, act_order, static_groups;
};

IntScheme scheme_of(const ColumnsCase& c) {
  IntScheme scheme;
  scheme.bits = c.symmetric ? 3 : 4;
  scheme.symmetric = c.symmetric;
  scheme.mse_search = c.search;
  scheme.granularity = c.granularity;
  scheme.group_size = c.group;
  return scheme;
}

bool columns_are_right(const ColumnsCase& c) {
  const IntScheme scheme = scheme_of(c);
  GptqOptions options;
  options.act_order = c.act_order;
  options.static_groups = c.static_groups;
  const std::vector<int64_t> dead = c.in > 20 ? std::vector<int64_t>{0, 17} : std::vector<int64_t>{};
  const Square h = products_of(make_states(c.in + 30, c.in, 7, dead), c.in);
  const Weight w = make_weight(c.rows, c.in, DType::bfloat16, c.rows % 2 == 0, 3);
  DeviceProblems device(scheme, options);
  device.add(w, as_floats(h));
  const GptqResult got = device.run().front();
  ThreadPool pool(1);
  const GptqResult cpu = run_gptq(pool, w, as_floats(h), scheme, options);
  Weight live = w;
  for (int64_t r = 0; r < c.rows; ++r)
    for (const int64_t d : dead) {
      live.values[at(r * c.in + d)] = 0;
      if (got.values[at(r * c.in + d)] != 0) return report(__FILE__, __LINE__, "a dead column lives"), false;
    }
  return result_is_right(got, live, h, cpu) && got.report.dead_columns == cpu.report.dead_columns &&
         got.report.attempts == 1 && got.group_index == cpu.group_index && device.reads() == 1;
}

TEST("simt: columns have the CPU's error in every shape, granularity and order") {
  using enum Granularity;
  const std::vector<ColumnsCase> cases{
      {1, 1, group, 16, true, false, false, false},   {1, 129, group, 32, false, false, true, false},
      {33, 64, group, 10, true, true, false, false},  {8, 200, group, 128, false, false, true, true},
      {65, 63, row, 0, true, false, true, false},     {31, 130, column, 0, false, false, false, false},
      {17, 65, tensor, 0, true, true, false, false},  {9, 420, group, 200, false, true, true, false},
      {3, 300, group, 300, true, false, false, false}};
  for (const ColumnsCase& one : thinned(cases, 3)) CHECK(columns_are_right(one));
}

/// A Hessian that only damping makes positive definite: every column twice over, without any rounding.
std::vector<float> singular_products(int64_t in) {
  std::vector<float> x(at(8 * in));
  for (int64_t r = 0; r < 8; ++r)
    for (int64_t c = 0; c < in; ++c) x[at(r * in + c)] = (r * (1 + c / 2 % 7) >> 1 & 1) != 0 ? -1.0f : 1.0f;
  return as_floats(products_of(x, in));
}

bool batch_is_right(int64_t rows, int64_t in, int64_t group) {
  const IntScheme scheme = scheme_of({rows, in, Granularity::group, group, false, false, false, false});
  GptqOptions options;
  options.act_order = true;
  options.damping = 0;
  std::vector<std::pair<Weight, std::vector<float>>> inputs;
  for (const uint32_t seed : {1u, 2u, 3u})
    inputs.emplace_back(
        make_weight(rows, in, DType::float32, false, seed),
        seed == 2 ? singular_products(in) : as_floats(products_of(make_states(in + 30, in, seed, {5}), in)));
  DeviceProblems together(scheme, options);
  for (const auto& [w, products] : inputs) together.add(w, products);
  const std::vector<GptqResult> batch = together.run();
  for (size_t i = 0; i < inputs.size(); ++i) {
    DeviceProblems alone(scheme, options);
    alone.add(inputs[i].first, inputs[i].second);
    if (!same(batch[i], alone.run().front()))
      return report(__FILE__, __LINE__, "problem " + show(i) + " differs from itself alone"), false;
  }
  return batch[0].report.attempts == 1 && batch[1].report.attempts == 2 && batch[1].report.damping == 1e-4 &&
         batch[0].report.dead_columns == 1 && batch[2].report.damping == 0;
}

TEST("simt: problems side by side have the bits of each alone, also where one needs more damping") {
  CHECK(batch_is_right(9, 70, 16));
  if (!kThreadSanitizer) CHECK(batch_is_right(5, 140, 64));
}

/// The same bits as in the first order of threads.
bool run_repeats(const ColumnsCase& c, std::vector<GptqResult>& first) {
  const Weight w = make_weight(c.rows, c.in, DType::float32, false, 3);
  const std::vector<float> products = as_floats(products_of(make_states(c.in + 30, c.in, 7), c.in));
  GptqOptions options;
  options.act_order = c.act_order;
  options.static_groups = c.static_groups;
  DeviceProblems device(scheme_of(c), options);
  device.add(w, products);
  std::vector<GptqResult> now = device.run();
  if (first.empty()) first = now;
  return same(first.front(), now.front());
}

/// One of each schedule and each arrival: a run of all kernels takes long.
std::vector<simt::emulator::Options> few_orders() {
  const std::vector<simt::emulator::Options> all = every_order(1);
  return {all.front(), all[all.size() / 2], all.back()};
}

TEST("simt: columns are the same in every order of threads and arrivals, and need each barrier and wait") {
  // Two blocks of columns, with a group in each.
  constexpr ColumnsCase kBlocks{9, 78, Granularity::group, 66, false, false, false, false};
  std::vector<GptqResult> first;
  CHECK(run_repeats(kBlocks, first));
  const auto repeats = [&] { return run_repeats(kBlocks, first); };
  require_right(__FILE__, __LINE__, every_order(1), repeats);
  if (kThreadSanitizer) return;
  // Those of the factor have a test of their own, with more orders.
  for (const SyncSite& site : drop_each_sync(few_orders(), repeats))
    if (site.noticed == 0 && site.place.find("factor_cuda") == std::string::npos)
      report(__FILE__, __LINE__, site.place + " could go unnoticed");
}

TEST("simt: groups of several blocks, searched for and sorted, are the same in every order of threads") {
  constexpr ColumnsCase kGroups{5, 134, Granularity::group, 130, true, true, true, false};
  std::vector<GptqResult> first;
  CHECK(run_repeats(kGroups, first));
  require_right(__FILE__, __LINE__, few_orders(), [&] { return run_repeats(kGroups, first); });
}

TEST("simt: the error of any weight is float64's, and needs each barrier") {
  const auto error_is_right = [] {
    const int64_t rows = 70;
    const int64_t in = 72;
    DeviceRoom room;
    const Square h = products_of(make_states(100, in, 5), in);
    const Weight a = make_weight(rows, in, DType::float16, true, 1);
    const Weight b = make_weight(rows, in, DType::float32, false, 2);
    std::vector<double> lost(a.values.size());
    for (size_t i = 0; i < lost.size(); ++i) lost[i] = double{a.values[i]} - b.values[i];
    ConstMatrix left = a.view();
    ConstMatrix right = b.view();
    left.data = reinterpret_cast<const std::byte*>(room.copy(a.stored));
    right.data = reinterpret_cast<const std::byte*>(room.copy(b.stored));
    const float* const products = room.copy(as_floats(h));
    double got = 0;
    room.run([&] {
      got = ops::output_error_cuda({nullptr,
                                    [&](int64_t bytes) {
                                      return std::make_shared<Storage>(nullptr, room.take<std::byte>(bytes),
                                                                       bytes, true);
                                    },
                                    [](const std::byte* from, std::byte* host, int64_t bytes) {
                                      std::memcpy(host, from, static_cast<size_t>(bytes));
                                    }},
                                   left, &right, products);
    });
    const double expected = energy(lost, h, in);
    return std::abs(got - expected) <= 1e-5 * expected;
  };
  CHECK(error_is_right());
  require_each_sync(__FILE__, __LINE__, {error_is_right});
}

}  // namespace
