#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/storage.h"
#include "ops/gemm/factor.h"

/// The products of a mixture-of-experts layer.
namespace quantaria::ops {

/// One expert's matrices as right factors: gate and up [hidden, inter], down [inter, hidden].
struct ExpertFactors {
  std::unique_ptr<Factor> gate;
  std::unique_ptr<Factor> up;
  std::unique_ptr<Factor> down;
};

/// Which tokens each expert gets, as moe.route makes it (ops/moe/route.h).
struct Slots {
  int64_t tokens;
  int64_t top_k;
  int64_t experts;
  const int32_t* order;    // [tokens * top_k]
  const int32_t* offsets;  // [experts + 1]
  const float* weights;    // [tokens, top_k]
};

/// y[t] = sum_k weight[t, k] * down(silu(gate x[t]) * (up x[t])) over t's experts, in the order of k, rounded
/// once to y's dtype. x [tokens, hidden] float32, float16 or bfloat16; y [tokens, hidden] of any float dtype,
/// contiguous rows. `factors(e)` is asked once for each expert that has tokens. Each expert's weights are
/// decoded once for some hundred tokens; what lies between the products is float32.
/// `allocate` gives memory for that many bytes, undefined: a caching allocator's, as fresh pages would cost a
/// tenth.
void experts(ThreadPool& pool, const ConstMatrix& x, int64_t inter, const Slots& slots,
             const std::function<ExpertFactors(int64_t)>& factors,
             const std::function<std::shared_ptr<Storage>(int64_t)>& allocate, const Matrix& y);

/// Rows of x, counts[e] of them for each expert e in order, times w_e [in, out]: y [rows, out] of any float
/// dtype. ERR_ARGUMENT unless the counts are not negative and add up to x's rows.
void grouped_matmul(ThreadPool& pool, const ConstMatrix& x, const int32_t* counts,
                    const std::vector<std::unique_ptr<Factor>>& factors, const Matrix& y);

/// That error alone.
void check_counts(const int32_t* counts, int64_t experts, int64_t rows);

}  // namespace quantaria::ops
