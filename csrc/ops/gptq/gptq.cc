#include "ops/gptq/gptq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "ops/gptq/grids.h"
#include "ops/gptq/rows.h"
#include "ops/quantize/int_grid.h"

namespace quantaria::ops {

void check_gptq(const GptqInput& input, const GptqOptions& options) {
  const ConstMatrix& w = input.weight;
  check_weight(w);
  if (!(options.damping >= 0) || std::isinf(options.damping))
    fail(ErrorCode::argument, "damping: ", options.damping, " given, a finite number >= 0 expected");
  if (options.block_size < 1)
    fail(ErrorCode::argument, "blockSize: ", options.block_size, " given, at least 1 expected");
  if (input.samples < 1 && w.cols > 0)
    fail(ErrorCode::argument, "hessian: ", input.samples, " samples, at least one expected");
  if (input.beside == nullptr) return;
  check_weight(*input.beside, "beside");
  if (input.beside->rows != w.rows || input.beside->cols != w.cols)
    fail(ErrorCode::shape, "beside: [", input.beside->rows, ", ", input.beside->cols, "], [", w.rows, ", ",
         w.cols, "] expected");
}

namespace {

/// What the grids need of the weight without its dead columns.
void prepare(ThreadPool& pool, const ConstMatrix& w, const GptqFactor& factor, GptqGrids& grids,
             const Scratch& scratch) {
  if (!grids.needs_weight()) return;
  if (factor.dead_columns() == 0) return grids.prepare(pool, w);
  std::vector<int64_t> dead;
  for (size_t p = 0; p < factor.order().size(); ++p)
    if (factor.dead()[p]) dead.push_back(factor.order()[p]);
  const std::shared_ptr<Storage> memory = scratch(w.rows * w.cols * size_of(DType::float32));
  auto* const values = reinterpret_cast<float*>(memory->data());
  FiniteCheck check;
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      float* const row = values + (first + i) * w.cols;
      std::memcpy(row, strip.row(i), static_cast<size_t>(w.cols) * sizeof(float));
      float absmax = 0;
      check.ok(range_kernels().absmax(row, w.cols, w.cols, &absmax));
      for (const int64_t column : dead) row[column] = 0;
    }
  });
  check.finish(w);
  grids.prepare(pool, {memory->data(), DType::float32, w.rows, w.cols, w.cols, 1});
}

/// By position.
std::vector<int32_t> grids_of_columns(const GptqGrids& grids, const GptqFactor& factor) {
  std::vector<int32_t> of_columns;
  for (size_t p = 0; p < factor.order().size(); ++p)
    of_columns.push_back(static_cast<int32_t>(grids.grid_of(static_cast<int64_t>(p), factor.order()[p])));
  return of_columns;
}

/// Rows of a task: several strips, that the factor is read once for all of them, and enough tasks for many
/// threads.
int64_t rows_of_task(int64_t rows) {
  constexpr int64_t kMostStrips = 8;
  constexpr int64_t kTasks = 32;
  const int64_t strips = (rows + kStripRows - 1) / kStripRows;
  return std::clamp<int64_t>((strips + kTasks - 1) / kTasks, 2, kMostStrips) * kStripRows;
}

/// The factor of the problem before, for problems that have its Hessian and options.
class LastFactor {
 public:
  const GptqFactor& of(ThreadPool& pool, const GptqInput& input, const GptqOptions& options,
                       int64_t block_cols, int64_t group, const Scratch& scratch) {
    const bool same = factor_ != nullptr && products_ == input.products && samples_ == input.samples &&
                      cols_ == input.weight.cols && group_ == group;
    if (!same) {
      factor_.reset();  // its memory first
      factor_ = std::make_unique<GptqFactor>(pool, input, options, block_cols, group, scratch);
      products_ = input.products;
      samples_ = input.samples;
      cols_ = input.weight.cols;
      group_ = group;
    }
    return *factor_;
  }

 private:
  std::unique_ptr<GptqFactor> factor_;
  const float* products_ = nullptr;
  int64_t samples_ = 0;
  int64_t cols_ = 0;
  int64_t group_ = 0;
};

/// `group_index`: of a GptqProblem.
GptqReport solve(ThreadPool& pool, const GptqInput& input, GptqGrids& grids, const GptqOptions& options,
                 const Scratch& scratch, LastFactor& last, int32_t* group_index = nullptr) {
  const ConstMatrix& w = input.weight;
  if (w.cols == 0) {
    grids.prepare(pool, w);
    return {.damping = options.damping};
  }
  const int64_t fitted_group = grids.fitted_group();
  const int64_t block_cols = std::min(options.block_size, kBlockCols);
  const GptqFactor& factor = last.of(pool, input, options, block_cols, fitted_group, scratch);
  prepare(pool, w, factor, grids, scratch);
  const GptqRows shared{.weight = w,
                        .beside = input.beside,
                        .grids = grids,
                        .factor = factor,
                        .fitted_group = fitted_group,
                        .long_groups = fitted_group > block_cols,
                        .grid_of_column = grids_of_columns(grids, factor)};

  const int64_t height = rows_of_task(w.rows);
  std::vector<RowSums> sums(static_cast<size_t>((w.rows + kStripRows - 1) / kStripRows));
  FiniteCheck check;
  pool.parallel_for((w.rows + height - 1) / height, [&](int64_t task) {
    const int64_t first = task * height;
    quantize_rows(shared, first, std::min(height, w.rows - first), check, sums.data() + first / kStripRows);
  });
  check.finish(w);
  grids.finish(pool);

  if (group_index != nullptr)
    for (size_t p = 0; p < shared.grid_of_column.size(); ++p)
      group_index[factor.order()[p]] = shared.grid_of_column[p];
  GptqReport report{
      .damping = factor.damping(), .attempts = factor.attempts(), .dead_columns = factor.dead_columns()};
  for (const RowSums& rows : sums) {
    report.error += rows.error;
    report.weight += rows.weight;
    report.beside += rows.beside;
  }
  // A form that is never negative can come out so by rounding.
  report.error = std::max(0.0, report.error * factor.unit());
  report.weight = std::max(0.0, report.weight * factor.unit());
  report.beside = std::max(0.0, report.beside * factor.unit());
  return report;
}

/// Constants [rows, groups] in the order in which groups were quantized, put into the weight's. `places`: of
/// each column.
template <class T>
void sort_constants(ThreadPool& pool, const std::vector<int32_t>& places, int64_t group, int64_t groups,
                    int64_t rows, T* constants) {
  constexpr int64_t kRows = 64;
  pool.parallel_for((rows + kRows - 1) / kRows, [&](int64_t task) {
    std::vector<T> before(static_cast<size_t>(groups));
    for (int64_t r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r) {
      T* const own = constants + r * groups;
      std::copy_n(own, groups, before.begin());
      for (int64_t g = 0; g < groups; ++g)
        own[g] = before[static_cast<size_t>(places[static_cast<size_t>(g * group)])];
    }
  });
}

GptqReport quantize_integers(ThreadPool& pool, const GptqProblem& problem, const IntScheme& scheme,
                             const GptqOptions& options, const Scratch& scratch, LastFactor& last) {
  check_gptq(problem, options);
  check_scheme(scheme);
  if (scheme.bits == 16) fail(ErrorCode::unsupported, "scheme: 16 bits leave GPTQ nothing to make up for");
  const std::unique_ptr<GptqGrids> grids = int_grids(problem.weight, scheme, options, problem.to);
  const int64_t group = grids->fitted_group();
  const bool whole_groups = options.act_order && options.group_order && group > 0;
  if (!whole_groups) return solve(pool, problem, *grids, options, scratch, last, problem.group_index);
  std::vector<int32_t> places(static_cast<size_t>(problem.weight.cols));
  const GptqReport report = solve(pool, problem, *grids, options, scratch, last, places.data());
  const int64_t groups = grids->count();
  sort_constants(pool, places, group, groups, problem.weight.rows, problem.to.scales);
  if (problem.to.zeros != nullptr)
    sort_constants(pool, places, group, groups, problem.weight.rows, problem.to.zeros);
  return report;
}

}  // namespace

GptqReport quantize_gptq(ThreadPool& pool, const GptqProblem& problem, const IntScheme& scheme,
                         const GptqOptions& options, const Scratch& scratch) {
  LastFactor last;
  return quantize_integers(pool, problem, scheme, options, scratch, last);
}

GptqReport quantize_gptq(ThreadPool& pool, const GptqInput& input, const CodebookScheme& scheme,
                         const CodebookStored& to, const GptqOptions& options, const Scratch& scratch) {
  check_gptq(input, options);
  const std::unique_ptr<GptqGrids> grids = codebook_grids(input.weight, scheme, options, to, scratch);
  LastFactor last;
  return solve(pool, input, *grids, options, scratch, last);
}

GptqReport quantize_gptq(ThreadPool& pool, const GptqInput& input, const Fp8Scheme& scheme,
                         const Fp8Stored& to, const GptqOptions& options, const Scratch& scratch) {
  check_gptq(input, options);
  const std::unique_ptr<GptqGrids> grids = fp8_grids(input.weight, scheme, to);
  LastFactor last;
  return solve(pool, input, *grids, options, scratch, last);
}

GptqReport quantize_gptq(ThreadPool& pool, const GptqInput& input, const MxScheme& scheme, const MxStored& to,
                         const GptqOptions& options, const Scratch& scratch) {
  check_gptq(input, options);
  const std::unique_ptr<GptqGrids> grids = mx_grids(input.weight, scheme, options, to);
  LastFactor last;
  return solve(pool, input, *grids, options, scratch, last);
}

std::vector<GptqReport> quantize_gptq(ThreadPool& pool, std::span<const GptqProblem> problems,
                                      const IntScheme& scheme, const GptqOptions& options,
                                      const Scratch& scratch) {
  // Up to here a single factorisation is too short to keep several threads busy.
  constexpr int64_t kSideBySide = 2048;
  const bool small = std::all_of(problems.begin(), problems.end(), [](const GptqProblem& problem) {
    return problem.weight.cols <= kSideBySide && problem.weight.rows <= kSideBySide;
  });
  std::vector<GptqReport> reports(problems.size());
  // Problems of one Hessian that follow each other are one run, which factors it once.
  std::vector<size_t> runs;
  for (size_t i = 0; i < problems.size(); ++i)
    if (i == 0 || problems[i].products != problems[i - 1].products) runs.push_back(i);
  const auto quantize = [&](ThreadPool& on, size_t run) {
    const size_t end = run + 1 < runs.size() ? runs[run + 1] : problems.size();
    LastFactor last;
    for (size_t i = runs[run]; i < end; ++i)
      reports[i] = quantize_integers(on, problems[i], scheme, options, scratch, last);
  };
  if (small && runs.size() > 1) {
    pool.parallel_for(static_cast<int64_t>(runs.size()), [&](int64_t run) {
      ThreadPool alone(1);
      quantize(alone, static_cast<size_t>(run));
    });
  } else {
    for (size_t run = 0; run < runs.size(); ++run) quantize(pool, run);
  }
  return reports;
}

}  // namespace quantaria::ops
