#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "core/thread_pool.h"

/// Factors of single input and output features, which activation-aware methods move between a linear layer
/// and what makes its input (AWQ, arXiv 2306.00978; SmoothQuant, arXiv 2211.10438), and the clipping of
/// groups of weights. Matrices are float32, float16 or bfloat16 of any strides unless said otherwise; results
/// are float32, row-major, and the same bits for any number of threads.
namespace quantaria::ops {

/// maxima[c] = max(maxima[c], max |x(:, c)|) and sums[c] += sum |x(:, c)|, summed in float64.
void column_magnitudes(ThreadPool& pool, const ConstMatrix& x, float* maxima, float* sums);

/// to(r, c) = w(r, c) * rows[r] * columns[c], rounded after each product; null factors are 1.
void scale_matrix(ThreadPool& pool, const ConstMatrix& w, const float* rows, const float* columns, float* to);

/// to(r, c) = w(r, c) clamped to +-ratios(r, g) * max |w(r, group g of c)|. Groups of `group` columns, the
/// last of which may be short; ratios [rows, groups].
void clamp_groups(ThreadPool& pool, const ConstMatrix& w, int64_t group, const float* ratios, float* to);

/// to(r, c) = x(r, c) / scale rounded to the nearest integer (ties to even) of -128 .. 127, times scale: what
/// is left of activations of 8 bits with one scale for all. NaN stays NaN.
void round_to_scale(ThreadPool& pool, const ConstMatrix& x, float scale, float* to);

/// errors(r, g) = d^T P d with d = w(r, group g) - v(r, group g) and P the diagonal block of `products` (of
/// which the upper triangle is read) at group g: what rounding one group costs the layer's output if nothing
/// else is rounded. products [in, in], errors [rows, groups].
void group_errors(ThreadPool& pool, const ConstMatrix& w, const ConstMatrix& v, const float* products,
                  int64_t group, float* errors);

}  // namespace quantaria::ops
