#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/matrix.h"
#include "core/storage.h"
#include "core/thread_pool.h"
#include "ops/quantize/quantize.h"

/// GPTQ: quantization of a linear weight W [out, in] that keeps the layer's output on calibration states X,
/// min tr((W - Q) H (W - Q)^T) with H = 2 X^T X / samples, column by column, each column's error made up for
/// in the columns behind it. Source: Frantar et al., arXiv 2210.17323.
///
/// The same bits for any number of threads (of one instruction set).
namespace quantaria::ops {

/// Memory for what a run keeps beside its results: about 8 KiB for each column of x here; for a quantization
/// about 2 in^2 float32, and for code books a byte for each weight. Throws ERR_OUT_OF_MEMORY.
using Scratch = std::function<std::shared_ptr<Storage>(int64_t bytes)>;

/// products += x^T x, of which only the upper triangle is good: x [rows, in] float32, float16 or
/// bfloat16, any strides; products float32 [in, in], row-major. NaN and infinity are carried through to their
/// column's place on the diagonal. Throws ERR_DTYPE.
void add_outer_products(ThreadPool& pool, const ConstMatrix& x, float* products, const Scratch& scratch);

/// The same for several problems, products [problems, in, in]: the first counts[0] rows of x are problem 0's,
/// the next counts[1] problem 1's, ..., as routing sorts the states of experts. Rows behind them are
/// nobody's; a count under 0, or rows that are not there, count as none. Each gets the bits that its rows
/// alone give it.
void add_outer_products(ThreadPool& pool, const ConstMatrix& x, std::span<const int32_t> counts,
                        float* products, const Scratch& scratch);

/// hessian = 2 / samples * products, both triangles, float32 [in, in]; zeros if there are no samples.
void hessian_of(ThreadPool& pool, const float* products, int64_t in, int64_t samples, float* hessian);

struct GptqOptions {
  bool act_order = false;  // columns by falling diagonal of H; ties: the lower column first
  /// With act_order, of integers in groups whose grids are fitted on the way: groups stay whole. They come by
  /// the falling largest diagonal element of their columns (a short last one last), and columns by their own
  /// within each; ties: the lower first. Group g is then that of columns g * size .. as without act_order.
  bool group_order = false;
  /// All grids are those of round-to-nearest on the whole weight. Else the grid of a group is fitted when its
  /// first column is reached, on weights that have all errors so far made up for.
  bool static_groups = false;
  double damping = 0.01;  // added to H's diagonal, times the mean of the diagonal; >= 0
  /// Columns between two products, 1 and up (more than 128 count as 128). Changes rounding errors only.
  int64_t block_size = 128;
};

struct GptqInput {
  ConstMatrix weight;     // float32, float16 or bfloat16, any strides
  const float* products;  // of add_outer_products, [in, in]
  int64_t samples;        // in `products`, > 0
  /// Another weight that is measured beside the result, such as the nearest one. Null: none.
  const ConstMatrix* beside = nullptr;  // as `weight`
};

/// What every backend refuses, before any work: ERR_ARGUMENT, ERR_SHAPE, ERR_DTYPE.
void check_gptq(const GptqInput& input, const GptqOptions& options);

/// A problem whose result is integers.
struct GptqProblem : GptqInput {
  IntStored to;  // sizes as for quantize_int
  /// int32 [in], for act_order with groups that are neither static nor kept whole: the group of each column.
  /// Else null.
  int32_t* group_index;
};

/// Sizes as for quantize_fp8 and quantize_mx.
struct Fp8Stored {
  uint8_t* packed;
  float* scales;
};
struct MxStored {
  uint8_t* packed;
  uint8_t* scales;
  float* pre_scale;
};

struct GptqReport {
  double error = 0;   // tr((W - Q) H (W - Q)^T), H without damping
  double weight = 0;  // tr(W H W^T)
  double beside = 0;  // the error of the weight beside
  double damping = 0;
  int64_t attempts =
      0;  // factorisations: more than one if H was not positive definite and damping was raised
  int64_t dead_columns = 0;
};

/// Columns whose diagonal is 0 (no state ever reached them) become 0. Granularity row, tensor and column take
/// round-to-nearest's grids. If H is not positive definite, its damping is raised tenfold and it is factored
/// again. Throws ERR_ARGUMENT for options out of range, for NaN or infinity in the weight (with row and
/// column) or in H (with the column); ERR_UNSUPPORTED for 16 bits; ERR_DTYPE.
GptqReport quantize_gptq(ThreadPool& pool, const GptqProblem& problem, const IntScheme& scheme,
                         const GptqOptions& options, const Scratch& scratch);

/// The same with other grids. Blocks are fitted when their first column is reached, on weights that have all
/// errors so far made up for, where they may be: they start with a row, their constants are stored by
/// themselves (no double quantization), and neither act_order (no form stores the order) nor static_groups is
/// asked for. All other constants are round-to-nearest's on the whole weight: those of rows and tensors, of
/// blocks that span rows, absmax values as double quantization's codes decode to, factors before MX scales.
GptqReport quantize_gptq(ThreadPool& pool, const GptqInput& input, const CodebookScheme& scheme,
                         const CodebookStored& to, const GptqOptions& options, const Scratch& scratch);
GptqReport quantize_gptq(ThreadPool& pool, const GptqInput& input, const Fp8Scheme& scheme,
                         const Fp8Stored& to, const GptqOptions& options, const Scratch& scratch);
GptqReport quantize_gptq(ThreadPool& pool, const GptqInput& input, const MxScheme& scheme, const MxStored& to,
                         const GptqOptions& options, const Scratch& scratch);

/// Integers for several weights, such as the experts of a layer; small ones side by side. A Hessian (the same
/// `products`) that several in a row have is factored once, for the same bits as each by itself. Reports in
/// order.
std::vector<GptqReport> quantize_gptq(ThreadPool& pool, std::span<const GptqProblem> problems,
                                      const IntScheme& scheme, const GptqOptions& options,
                                      const Scratch& scratch);

/// to += factor * from, over `count` elements.
void add_scaled(ThreadPool& pool, const float* from, float factor, int64_t count, float* to);

/// tr((A - B) P (A - B)^T) for weights A and B [out, in], float32, float16 or bfloat16, any strides, and the
/// P of add_outer_products: the squared error of a layer's output if it has the weight B instead of A.
/// Without a B, that of the output itself. Products in float32, sums of rows in float64. Memory: in^2 + 1024
/// in float32.
double output_error(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix* b, const float* products,
                    const Scratch& scratch);

}  // namespace quantaria::ops
