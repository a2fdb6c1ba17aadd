#include "ops/gptq/gptq_cuda.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "ops/bitpack/bitpack.h"
#include "ops/gptq/columns.cuh"
#include "ops/gptq/solver_cuda.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// first: scale, second: zero.
struct IntColumns {
  IntRule grids;
  bool mse_search;
  Granularity granularity;
  int64_t group;          // columns of one, granularity group only
  bool fitted;            // when it is reached
  bool whole;             // groups are those of the weight's own order
  int64_t row_constants;  // from one row's constants to the next one's; 0 if all rows share them
  PerProblem<IntStored> to;

  constexpr int64_t fitted_group() const { return fitted ? group : 0; }
  __device__ int64_t grid_of(int64_t position, int64_t column) const {
    if (granularity == Granularity::column) return column;
    if (granularity != Granularity::group) return 0;
    return (fitted && !whole ? position : column) / group;
  }
  __device__ Grid load(int problem, int64_t row, int64_t grid) const {
    const IntStored& stored = to.of[problem];
    const int64_t at = row * row_constants + grid;
    return {simt::load(stored.scales + at),
            stored.zeros == nullptr ? 0.0f : static_cast<float>(simt::load(stored.zeros + at))};
  }
  __device__ void store(int problem, int64_t row, int64_t grid, const Grid& fitted_grid) const {
    const IntStored& stored = to.of[problem];
    const int64_t at = row * row_constants + grid;
    simt::store(stored.scales + at, fitted_grid.first);
    if (stored.zeros != nullptr) simt::store(stored.zeros + at, static_cast<int32_t>(fitted_grid.second));
  }
  template <class Value>
  __device__ Grid fit(int, int64_t, int64_t n, const Value& value) const {
    // Updates can overflow where a weight is near the end of float32.
    constexpr float kMost = std::numeric_limits<float>::max();
    Ends ends = ends_of(n, value);
    ends.low = ends.low < -kMost ? -kMost : ends.low;
    ends.high = ends.high > kMost ? kMost : ends.high;
    if (grids.symmetric) {
      ends.high = -ends.low > ends.high ? -ends.low : ends.high;
      ends.low = -ends.high;
    }
    const AffineGrid grid =
        mse_search ? search_values(grids, ends, n, value) : fit_int(grids, ends.low, ends.high);
    return {grid.scale, grid.zero};
  }
  __device__ Rounded round(const Grid& grid, float w) const {
    return round_int(grids, grid.first, grid.second, w);
  }
};

IntColumns int_columns(const IntScheme& scheme, const GptqOptions& options, int64_t rows, int64_t in) {
  const ConstantsShape shape = constants_shape(scheme, rows, in);
  IntColumns columns{};
  columns.grids = int_rule_of(scheme);
  columns.mse_search = scheme.mse_search;
  columns.granularity = scheme.granularity;
  columns.group = scheme.group_size;
  columns.fitted = scheme.granularity == Granularity::group && !options.static_groups;
  columns.whole = options.group_order || !options.act_order;
  columns.row_constants =
      shape.rows == 1 && scheme.granularity != Granularity::row && scheme.granularity != Granularity::group
          ? 0
          : shape.cols;
  return columns;
}

}  // namespace

std::vector<GptqReport> quantize_int_gptq_cuda(const GptqQueue& queue, std::span<const GptqProblem> problems,
                                               const IntScheme& scheme, const GptqOptions& options) {
  if (problems.empty()) return {};
  check_scheme(scheme);
  if (scheme.bits == 16) fail(ErrorCode::unsupported, "scheme: 16 bits leave GPTQ nothing to make up for");
  const ConstMatrix& shape = problems.front().weight;
  const IntColumns columns = int_columns(scheme, options, shape.rows, shape.cols);
  const auto round = [&](size_t problem, const QuantizeCall& call) {
    quantize_int_cuda(call, scheme, problems[problem].to);
  };
  const auto quantize = [&](const GptqRun& run, const BlockCut& cut, std::span<const size_t> batch) {
    IntColumns rule = columns;
    PerProblem<uint8_t*> packed{};
    PerProblem<int32_t*> group_index{};
    for (size_t i = 0; i < batch.size(); ++i) {
      rule.to.of[i] = problems[batch[i]].to;
      packed.of[i] = problems[batch[i]].to.packed;
      group_index.of[i] = problems[batch[i]].group_index;
    }
    quantize_all_columns(queue.stream, run, cut, rule);
    pack_codes(queue.stream, run, packed, scheme.bits, false);
    if (problems.front().group_index != nullptr)
      index_groups(queue.stream, run, group_index, scheme.group_size);
  };
  const int64_t workspace = quantize_int_workspace(scheme, shape.rows, shape.cols);
  return GptqSolver(queue, {problems.begin(), problems.end()}, options,
                    {columns.fitted_group(), !columns.fitted, workspace, round, quantize})
      .solve();
}

}  // namespace quantaria::ops
