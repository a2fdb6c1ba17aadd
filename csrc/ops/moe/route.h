#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "core/thread_pool.h"

/// Which experts each token goes to, and the tokens of each expert.
namespace quantaria::ops {

/// What the router's logits are made into.
struct RouteOptions {
  int64_t top_k = 1;           // 1..E
  int64_t groups = 1;          // of E / groups experts that follow each other, at most kMaxRouteGroups
  int64_t top_groups = 1;      // the groups whose best expert is best; the others stand for no choice
  bool softmax_first = false;  // weights are probabilities among all experts, else among the chosen ones
  bool normalize = false;      // divide the weights of a token by their sum
  double scale = 1;            // and multiply them by this
};

/// As many groups as a set of bits has.
inline constexpr int64_t kMaxRouteGroups = 64;

/// ERR_ARGUMENT if `experts` cannot be routed so.
void check_route(const RouteOptions& options, int64_t experts);

/// The slots t * K + k of all tokens, sorted by expert; slots of one expert in rising order.
struct SlotOrder {
  int32_t* counts;   // [E] slots of each expert
  int32_t* offsets;  // [E + 1] sums of the counts before: expert e has order[offsets[e]] to order[offsets[e +
                     // 1] - 1]
  int32_t* order;    // [T * K]
};

/// The top_k experts of each token by falling logit, ties to the lower index, with their weights. With
/// groups, of the top_groups groups only (DeepSeek-V2, 2.1.2: device-limited routing); a softmax over all
/// experts is over the others too. logits [T, E], float32, float16 or bfloat16 (else ERR_DTYPE), any strides;
/// indices int32 [T, K], weights float32 [T, K]; T * K < 2^31. Softmax in float64, each weight rounded once.
///
/// A NaN ranks above infinity, so it is chosen first. A token with a NaN, or whose largest logit is infinite,
/// has NaN weights throughout; minus infinity below a finite logit has weight 0. The indices of a token are
/// distinct and lie in 0..E-1 whatever the logits.
void route(ThreadPool& pool, const ConstMatrix& logits, const RouteOptions& options, int32_t* indices,
           float* weights, const SlotOrder& slots);

/// The slots of given indices, `count` of them. ERR_ARGUMENT names the first slot whose index is not in
/// 0..experts-1, by its row and column of indices [T, top_k]; the outputs are then unspecified.
void sort_slots(const int32_t* indices, int64_t count, int64_t top_k, int64_t experts, const SlotOrder& to);

/// That error alone.
void check_indices(const int32_t* indices, int64_t count, int64_t top_k, int64_t experts);

}  // namespace quantaria::ops
