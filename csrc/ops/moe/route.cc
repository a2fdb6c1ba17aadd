#include "ops/moe/route.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// One number that sorts as (logit, lower index first): above, the float's bits made monotonic.
uint64_t rank_of(float logit, int64_t index) {
  constexpr uint32_t kSign = 0x80000000u;
  uint32_t bits = std::bit_cast<uint32_t>(logit == 0 ? 0.0f : logit);  // the zeros are equal
  bits = std::isnan(logit) ? ~0u : bits ^ ((bits & kSign) != 0 ? ~0u : kSign);
  return uint64_t{bits} << 32 | (~static_cast<uint32_t>(index));
}
int32_t index_of(uint64_t rank) { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); }

/// The buffers of one task, for the tokens that it routes one after the other.
class Router {
 public:
  Router(const RouteOptions& options, int64_t experts)
      : options_(options), top_k_(static_cast<size_t>(options.top_k)) {
    ranks_.resize(static_cast<size_t>(experts));
    raised_.resize(top_k_);
    bests_.resize(static_cast<size_t>(options.groups));
  }

  void route(const float* logits, int32_t* indices, float* weights) {
    for (size_t e = 0; e < ranks_.size(); ++e) ranks_[e] = rank_of(logits[e], static_cast<int64_t>(e));
    std::partial_sort(ranks_.begin(), ranks_.begin() + static_cast<int64_t>(top_k_), end_of_choice(),
                      std::greater<>());
    for (size_t k = 0; k < top_k_; ++k) indices[k] = index_of(ranks_[k]);
    const double largest = static_cast<double>(logits[indices[0]]);  // NaN and infinity make every weight NaN
    const auto raised = [&](int64_t e) { return std::exp(static_cast<double>(logits[e]) - largest); };
    double chosen = 0;
    for (size_t k = 0; k < top_k_; ++k) chosen += raised_[k] = raised(indices[k]);
    double sum = chosen;
    if (options_.softmax_first && !options_.normalize)
      for (size_t e = top_k_; e < ranks_.size(); ++e) sum += raised(index_of(ranks_[e]));
    for (size_t k = 0; k < top_k_; ++k) weights[k] = static_cast<float>(raised_[k] / sum * options_.scale);
  }

 private:
  using Ranks = std::vector<uint64_t>;

  /// Puts the experts of the best groups first. A rank has its expert's index in it, so no two are equal, and
  /// a group is among the best iff its highest rank is not below that of the last of them.
  Ranks::iterator end_of_choice() {
    if (options_.top_groups == options_.groups) return ranks_.end();
    const int64_t size = static_cast<int64_t>(ranks_.size()) / options_.groups;
    for (int64_t g = 0; g < options_.groups; ++g)
      bests_[static_cast<size_t>(g)] =
          *std::max_element(ranks_.begin() + g * size, ranks_.begin() + (g + 1) * size);
    falling_ = bests_;
    const auto least = falling_.begin() + (options_.top_groups - 1);
    std::nth_element(falling_.begin(), least, falling_.end(), std::greater<>());
    return std::partition(ranks_.begin(), ranks_.end(), [&](uint64_t rank) {
      return bests_[static_cast<size_t>(index_of(rank) / size)] >= *least;
    });
  }

  const RouteOptions& options_;
  const size_t top_k_;
  Ranks ranks_;
  Ranks bests_;  // of each group
  Ranks falling_;
  std::vector<double> raised_;
};

}  // namespace

void check_route(const RouteOptions& options, int64_t experts) {
  const int64_t groups = options.groups;
  if (groups < 1 || groups > kMaxRouteGroups || experts % groups != 0)
    fail(ErrorCode::argument, "groups: ", groups, ", a divisor of ", experts,
         " (the number of experts) up to ", kMaxRouteGroups, " expected");
  if (options.top_groups < 1 || options.top_groups > groups)
    fail(ErrorCode::argument, "topGroups: ", options.top_groups, ", 1 to ", groups, " expected");
  const int64_t choice = experts / groups * options.top_groups;
  if (options.top_k < 1 || options.top_k > choice)
    fail(ErrorCode::argument, "topK: ", options.top_k, ", 1 to ", choice, " (the number of experts",
         options.top_groups < groups ? " of the chosen groups" : "", ") expected");
}

void route(ThreadPool& pool, const ConstMatrix& logits, const RouteOptions& options, int32_t* indices,
           float* weights, const SlotOrder& slots) {
  check_weight(logits, "logits");
  const int64_t top_k = options.top_k;
  check_route(options, logits.cols);
  for_each_strip(pool, logits, [&](const Strip& strip, int64_t first) {
    Router router(options, logits.cols);
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const int64_t slot = (first + i) * top_k;
      router.route(strip.row(i), indices + slot, weights + slot);
    }
  });
  sort_slots(indices, logits.rows * top_k, top_k, logits.cols, slots);
}

void check_indices(const int32_t* indices, int64_t count, int64_t top_k, int64_t experts) {
  for (int64_t slot = 0; slot < count; ++slot) {
    const int32_t e = indices[slot];
    if (e < 0 || e >= experts)
      fail(ErrorCode::argument, "indices: ", e, " at row ", slot / top_k, ", column ", slot % top_k,
           ", 0 to ", experts - 1, " expected");
  }
}

void sort_slots(const int32_t* indices, int64_t count, int64_t top_k, int64_t experts, const SlotOrder& to) {
  check_indices(indices, count, top_k, experts);
  std::fill_n(to.counts, experts, 0);
  for (int64_t slot = 0; slot < count; ++slot) ++to.counts[indices[slot]];
  to.offsets[0] = 0;
  std::partial_sum(to.counts, to.counts + experts, to.offsets + 1);
  std::vector<int32_t> next(to.offsets, to.offsets + experts);
  for (int64_t slot = 0; slot < count; ++slot)
    to.order[next[static_cast<size_t>(indices[slot])]++] = static_cast<int32_t>(slot);
}

}  // namespace quantaria::ops
