#include "ops/gptq/solver_cuda.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "ops/gptq/tile_product.cuh"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

// As on the CPU (factor.cc).
constexpr double kLeastRaisedDamping = 1e-4;
constexpr double kLargestDamping = 1e12;
constexpr double kRaise = 10;

/// Gives out parts of one block of device memory; without one, counts them.
class Parts {
 public:
  explicit Parts(std::byte* memory) : memory_(memory) {}
  template <class T>
  void take(T*& part, int64_t count) {
    constexpr int64_t kApart = 256;
    part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kApart - 1) / kApart * kApart;
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  int64_t bytes_ = 0;
};

int64_t lay_out(GptqRun& run, const BlockCut& cut, bool solved, std::byte* memory) {
  Parts parts(memory);
  const int64_t weights = run.problems * run.rows * run.in;
  const int64_t rows = run.problems * run.rows;
  parts.take(run.state, run.problems);
  parts.take(run.order, run.problems * run.in);
  parts.take(run.largest, run.problems * run.in);
  parts.take(run.hessian, run.problems * run.in * run.in);
  parts.take(run.inverse, run.problems * kProductTile * kProductTile);
  parts.take(run.upper, run.problems * cut.blocks() * kUpperFloats);
  parts.take(run.values, weights);
  parts.take(run.product, rows * product_splits(std::max<int64_t>(1, run.rows)) * kGptqBlock);
  if (solved) parts.take(run.solved, weights);
  parts.take(run.codes, weights);
  parts.take(run.bad, rows);
  parts.take(run.errors, rows);
  parts.take(run.residuals, rows);
  parts.take(run.partial, run.problems * energy_tiles(run.rows, run.in));
  return parts.bytes();
}

}  // namespace

GptqSolver::GptqSolver(const GptqQueue& queue, std::vector<GptqInput> inputs, const GptqOptions& options,
                       Scheme scheme)
    : queue_(queue), inputs_(std::move(inputs)), options_(options), scheme_(std::move(scheme)), cut_{} {
  if (inputs_.empty()) return;
  const ConstMatrix& first = inputs_.front().weight;
  measures_beside_ = inputs_.front().beside != nullptr;
  for (const GptqInput& input : inputs_) {
    check_gptq(input, options);
    if (input.weight.rows != first.rows || input.weight.cols != first.cols)
      fail(ErrorCode::shape, "weights of ", first.rows, " x ", first.cols, " and of ", input.weight.rows,
           " x ", input.weight.cols, ", one shape expected");
    if ((input.beside != nullptr) != measures_beside_)
      fail(ErrorCode::argument, "beside: of some weights only");
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (first.rows > kMost || first.cols > kMost)
    fail(ErrorCode::unsupported, "w: ", first.rows, " x ", first.cols,
         ", under 2^31 rows and columns expected");
  cut_ = {first.cols, scheme_.fitted_group};
  run_.rows = first.rows;
  run_.in = first.cols;
}

void GptqSolver::allocate(int64_t batch) {
  run_.problems = batch;
  const bool solved = scheme_.needs_weight || cut_.long_groups();
  memory_ = queue_.scratch(lay_out(run_, cut_, solved, nullptr));
  lay_out(run_, cut_, solved, memory_->data());
}

double GptqSolver::energy(const ConstMatrix* b) {
  allocate(1);
  products_.of[0] = inputs_.front().products;
  weights_.of[0] = inputs_.front().weight;
  PerProblem<ConstMatrix> subtrahend{};
  if (b != nullptr) subtrahend.of[0] = *b;
  measure_products(queue_.stream, run_, products_, false, 0);
  gather_hessian(queue_.stream, run_, products_);
  load_values(queue_.stream, run_, weights_, b == nullptr ? nullptr : &subtrahend, products_);
  measure_values(EnergyOf::weight);
  const GptqState state = read_states().front();
  return state.bad_column >= 0 ? std::numeric_limits<double>::quiet_NaN() : state.energy * state.mean;
}

std::vector<GptqReport> GptqSolver::solve() {
  reports_.assign(inputs_.size(), {});
  if (inputs_.empty()) return reports_;
  if (run_.in == 0 || (run_.rows == 0 && scheme_.needs_weight))
    for (size_t i = 0; i < inputs_.size(); ++i) round_to_nearest(i, inputs_[i].weight);
  if (run_.in == 0) {
    for (GptqReport& report : reports_) report.damping = options_.damping;
    return reports_;
  }
  std::vector<Pending> todo;
  for (size_t i = 0; i < inputs_.size(); ++i) todo.push_back({i, options_.damping, 1});
  allocate(std::min<int64_t>(kGptqBatch, static_cast<int64_t>(todo.size())));
  while (!todo.empty()) {
    const size_t count = std::min<size_t>(kGptqBatch, todo.size());
    std::vector<Pending> left = solve_batch({todo.data(), count});
    left.insert(left.end(), todo.begin() + static_cast<std::ptrdiff_t>(count), todo.end());
    todo = std::move(left);
  }
  return reports_;
}

void GptqSolver::measure_values(EnergyOf rows) {
  add_energy(queue_.stream, run_);
  close_energy(queue_.stream, run_, rows);
}

/// Whether the weight is finite is the run's own to say.
void GptqSolver::round_to_nearest(size_t problem, const ConstMatrix& weight) {
  constexpr int64_t kErrorBytes = 256;
  const std::shared_ptr<Storage> memory = queue_.scratch(kErrorBytes + scheme_.workspace);
  scheme_.round(problem, {queue_.stream, weight, reinterpret_cast<float*>(memory->data()),
                          memory->data() + kErrorBytes});
}

void GptqSolver::round_live_columns(int64_t place, size_t problem) {
  float* const live = run_.solved + place * run_.rows * run_.in;
  copy_live_columns(queue_.stream, run_, place, weights_.of[place], products_.of[place], live);
  round_to_nearest(
      problem, {reinterpret_cast<const std::byte*>(live), DType::float32, run_.rows, run_.in, run_.in, 1});
}

void GptqSolver::queue_batch(std::span<const Pending> batch) {
  PerProblem<double> damping{};
  PerProblem<ConstMatrix> beside{};
  std::vector<size_t> problems;
  for (size_t i = 0; i < batch.size(); ++i) {
    products_.of[i] = inputs_[batch[i].problem].products;
    weights_.of[i] = inputs_[batch[i].problem].weight;
    if (measures_beside_) beside.of[i] = *inputs_[batch[i].problem].beside;
    damping.of[i] = batch[i].damping;
    problems.push_back(batch[i].problem);
  }
  run_.problems = static_cast<int64_t>(batch.size());
  measure_products(queue_.stream, run_, products_, options_.act_order,
                   options_.group_order ? scheme_.fitted_group : 0);
  gather_hessian(queue_.stream, run_, products_);
  if (run_.rows > 0) {
    if (measures_beside_) {
      load_values(queue_.stream, run_, weights_, &beside, products_);
      measure_values(EnergyOf::beside);
    }
    load_values(queue_.stream, run_, weights_, nullptr, products_);
    measure_values(EnergyOf::weight);
  }
  factor_hessian(queue_.stream, run_, products_, damping);
  if (run_.rows == 0) return;
  invert_triangles(queue_.stream, run_, cut_);
  for (size_t i = 0; scheme_.needs_weight && i < batch.size(); ++i)
    round_live_columns(static_cast<int64_t>(i), problems[i]);
  scheme_.quantize(run_, cut_, problems);
  close_report(queue_.stream, run_, weights_);
}

std::vector<GptqState> GptqSolver::read_states() {
  std::vector<GptqState> states(static_cast<size_t>(run_.problems));
  queue_.copy_out(reinterpret_cast<const std::byte*>(run_.state), reinterpret_cast<std::byte*>(states.data()),
                  run_.problems * static_cast<int64_t>(sizeof(GptqState)));
  return states;
}

GptqReport GptqSolver::report_of(const Pending& pending, const GptqState& state, double error) const {
  const double unit = state.mean * 2 / static_cast<double>(inputs_[pending.problem].samples);
  // A form that is never negative can come out so by rounding.
  return {.error = std::max(0.0, error * unit),
          .weight = std::max(0.0, state.energy * unit),
          .beside = std::max(0.0, state.beside * unit),
          .damping = pending.damping,
          .attempts = pending.attempts,
          .dead_columns = state.dead_columns};
}

std::vector<GptqSolver::Pending> GptqSolver::solve_batch(std::span<const Pending> batch) {
  queue_batch(batch);
  const std::vector<GptqState> states = read_states();
  std::vector<Pending> again;
  bool unsure = false;
  std::vector<double> errors;
  for (size_t i = 0; i < batch.size(); ++i) {
    const GptqState& state = states[i];
    errors.push_back(state.errors - batch[i].damping * state.residuals);
    if (state.bad_column >= 0)
      fail(ErrorCode::argument, "hessian: ", state.bad_value, " on the diagonal at column ", state.bad_column,
           ": the calibration states hold NaN, infinity or values too large to be squared there");
    if (state.stopped != 0) {
      const double damping = std::max(batch[i].damping * kRaise, kLeastRaisedDamping);
      if (damping > kLargestDamping)
        fail(ErrorCode::argument, "hessian: not positive definite with ", damping,
             " times the mean of its diagonal added; sums of x^T x expected");
      again.push_back({batch[i].problem, damping, batch[i].attempts + 1});
      continue;
    }
    if (state.bad_row >= 0)
      fail(ErrorCode::argument, "w: ", state.bad_value, " at row ", state.bad_row, ", column ",
           state.bad_place, ", magnitudes under ", std::numeric_limits<float>::infinity(), " expected");
    // With R R^T = H + damping the residuals D have D R = E, the errors that were spread, each divided by its
    // diagonal element of U: D H D^T = E E^T - damping D D^T. That loses digits where the damping is most of
    // the first term.
    constexpr double kLeastLeft = 0.25;
    unsure |= !(errors.back() >= kLeastLeft * state.errors);
  }
  std::vector<GptqState> measured;
  if (unsure && run_.rows > 0) {
    gather_hessian(queue_.stream, run_, products_);
    measure_values(EnergyOf::residuals);
    measured = read_states();
  }
  for (size_t i = 0; i < batch.size(); ++i)
    if (states[i].stopped == 0)
      reports_[batch[i].problem] =
          report_of(batch[i], states[i], measured.empty() ? errors[i] : measured[i].lost);
  return again;
}

double output_error_cuda(const GptqQueue& queue, const ConstMatrix& a, const ConstMatrix* b,
                         const float* products) {
  check_weight(a, "weight");
  if (b != nullptr) check_weight(*b, "values");
  if (a.rows == 0 || a.cols == 0) return 0;
  return GptqSolver(queue, {{a, products, 1}}, {}, {}).energy(b);
}

}  // namespace quantaria::ops
