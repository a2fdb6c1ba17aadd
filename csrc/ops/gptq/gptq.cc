#include "ops/gptq/gptq.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "ops/gptq/rows.h"

namespace quantaria::ops {
namespace {

void check_options(const GptqProblem& problem, const IntScheme& scheme, const GptqOptions& options) {
  check_weight(problem.weight);
  check_scheme(scheme);
  if (scheme.bits == 16) fail(ErrorCode::unsupported, "scheme: 16 bits leave GPTQ nothing to make up for");
  if (!(options.damping >= 0) || std::isinf(options.damping))
    fail(ErrorCode::argument, "damping: ", options.damping, " given, a finite number >= 0 expected");
  if (options.block_size < 1)
    fail(ErrorCode::argument, "blockSize: ", options.block_size, " given, at least 1 expected");
  if (problem.samples < 1 && problem.weight.cols > 0)
    fail(ErrorCode::argument, "hessian: ", problem.samples, " samples, at least one expected");
}

/// Group scales that are fitted as their columns are reached; all others are known beforehand.
int64_t fitted_group_of(const IntScheme& scheme, const GptqOptions& options) {
  return scheme.granularity == Granularity::group && !options.static_groups ? scheme.group_size : 0;
}

/// Round-to-nearest's grids of the weight without its dead columns. Its codes are overwritten later.
void fit_all_grids(ThreadPool& pool, const GptqProblem& problem, const IntScheme& scheme,
                   const GptqFactor& factor, const Scratch& scratch) {
  if (factor.dead_columns() == 0) return quantize_int(pool, problem.weight, scheme, problem.to);
  const ConstMatrix& w = problem.weight;
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
  quantize_int(pool, {memory->data(), DType::float32, w.rows, w.cols, w.cols, 1}, scheme, problem.to);
}

/// By position.
std::vector<int32_t> grids_of_columns(const IntScheme& scheme, const GptqFactor& factor,
                                      int64_t fitted_group) {
  std::vector<int32_t> grids;
  for (size_t p = 0; p < factor.order().size(); ++p) {
    const int64_t column = factor.order()[p];
    int64_t grid = 0;
    if (scheme.granularity == Granularity::column) grid = column;
    if (scheme.granularity == Granularity::group)
      grid = fitted_group > 0 ? static_cast<int64_t>(p) / fitted_group : column / scheme.group_size;
    grids.push_back(static_cast<int32_t>(grid));
  }
  return grids;
}

/// Rows of a task: several strips, that the factor is read once for all of them, and enough tasks for many
/// threads.
int64_t rows_of_task(int64_t rows) {
  constexpr int64_t kMostStrips = 8;
  constexpr int64_t kTasks = 32;
  const int64_t strips = (rows + kStripRows - 1) / kStripRows;
  return std::clamp<int64_t>((strips + kTasks - 1) / kTasks, 2, kMostStrips) * kStripRows;
}

}  // namespace

GptqReport quantize_gptq(ThreadPool& pool, const GptqProblem& problem, const IntScheme& scheme,
                         const GptqOptions& options, const Scratch& scratch) {
  check_options(problem, scheme, options);
  const ConstMatrix& w = problem.weight;
  if (w.cols == 0) {
    quantize_int(pool, w, scheme, problem.to);
    return {.damping = options.damping};
  }
  const int64_t fitted_group = fitted_group_of(scheme, options);
  const int64_t block_cols = std::min(options.block_size, kBlockCols);
  const GptqFactor factor(pool, problem, options, block_cols, fitted_group, scratch);
  if (fitted_group == 0) fit_all_grids(pool, problem, scheme, factor, scratch);
  const GptqRows shared{.problem = problem,
                        .scheme = scheme,
                        .factor = factor,
                        .fitted_group = fitted_group,
                        .long_groups = fitted_group > block_cols,
                        .grid_of_column = grids_of_columns(scheme, factor, fitted_group)};

  const int64_t height = rows_of_task(w.rows);
  std::vector<RowSums> sums(static_cast<size_t>((w.rows + kStripRows - 1) / kStripRows));
  FiniteCheck check;
  pool.parallel_for((w.rows + height - 1) / height, [&](int64_t task) {
    const int64_t first = task * height;
    quantize_rows(shared, first, std::min(height, w.rows - first), check, sums.data() + first / kStripRows);
  });
  check.finish(w);

  if (problem.group_index != nullptr)
    for (size_t p = 0; p < shared.grid_of_column.size(); ++p)
      problem.group_index[factor.order()[p]] = shared.grid_of_column[p];
  GptqReport report{
      .damping = factor.damping(), .attempts = factor.attempts(), .dead_columns = factor.dead_columns()};
  for (const RowSums& rows : sums) {
    report.error += rows.error;
    report.weight += rows.weight;
  }
  // A form that is never negative can come out so by rounding.
  report.error = std::max(0.0, report.error * factor.unit());
  report.weight = std::max(0.0, report.weight * factor.unit());
  return report;
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
  const auto solve = [&](ThreadPool& on, size_t i) {
    reports[i] = quantize_gptq(on, problems[i], scheme, options, scratch);
  };
  if (small && problems.size() > 1) {
    pool.parallel_for(static_cast<int64_t>(problems.size()), [&](int64_t i) {
      ThreadPool alone(1);
      solve(alone, static_cast<size_t>(i));
    });
  } else {
    for (size_t i = 0; i < problems.size(); ++i) solve(pool, i);
  }
  return reports;
}

}  // namespace quantaria::ops
