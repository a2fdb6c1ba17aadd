#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ops/gptq/gptq_cuda.h"
#include "ops/gptq/run_cuda.h"
#include "ops/quantize/quantize_cuda.h"

namespace quantaria::ops {

/// Runs problems of one shape to their end, whatever the scheme: a batch at a time, and again with more
/// damping those whose Hessian was not positive definite.
class GptqSolver {
 public:
  /// What a scheme adds. Problems are named by their index.
  struct Scheme {
    int64_t fitted_group;
    bool needs_weight;  // constants are round-to-nearest's, of the weight without its dead columns
    int64_t workspace;  // of `round`
    /// Queues round-to-nearest, which fills the result.
    std::function<void(size_t problem, const QuantizeCall& call)> round;
    /// Queues what there is to do once values, order and factor are there: all columns, and the result.
    std::function<void(const GptqRun& run, const BlockCut& cut, std::span<const size_t> problems)> quantize;
  };

  GptqSolver(const GptqQueue& queue, std::vector<GptqInput> inputs, const GptqOptions& options,
             Scheme scheme);

  std::vector<GptqReport> solve();
  /// tr((W - B) P (W - B)^T) for the only problem's weight W and products P; without a B, of the weight
  /// itself.
  double energy(const ConstMatrix* b);

 private:
  struct Pending {
    size_t problem;
    double damping;
    int64_t attempts;
  };
  void allocate(int64_t batch);
  std::vector<Pending> solve_batch(std::span<const Pending> batch);
  void queue_batch(std::span<const Pending> batch);
  void round_to_nearest(size_t problem, const ConstMatrix& weight);
  void round_live_columns(int64_t place, size_t problem);
  /// x^T H x over what lies in the run's `values`.
  void measure_values(EnergyOf rows);
  std::vector<GptqState> read_states();
  GptqReport report_of(const Pending& pending, const GptqState& state, double error) const;

  const GptqQueue& queue_;
  std::vector<GptqInput> inputs_;
  GptqOptions options_;
  Scheme scheme_;
  BlockCut cut_;
  bool measures_beside_ = false;
  GptqRun run_{};
  PerProblem<const float*> products_{};  // of the batch
  PerProblem<ConstMatrix> weights_{};
  std::shared_ptr<Storage> memory_;
  std::vector<GptqReport> reports_;
};

}  // namespace quantaria::ops
