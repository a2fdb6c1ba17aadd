#pragma once

#include <cstdint>

#include "core/matrix.h"

/// What the launches of one run of GPTQ on a device share. Problems of one shape go side by side: problem p
/// is that of blockIdx.y == p, and its part of each array lies p times its size behind that of problem 0.
namespace quantaria::ops {

/// Problems of a run, at most: so many pointers of each kind are handed to kernels by value.
inline constexpr int64_t kGptqBatch = 32;

template <class T>
struct PerProblem {
  T of[kGptqBatch];
};

/// What becomes of one problem.
struct GptqState {
  int32_t stopped;     // not positive definite, or bad_column: the kernels behind do nothing
  int32_t bad_column;  // the first with NaN or infinity on the diagonal of the products, or -1
  int32_t bad_row;     // of the weight, the first with NaN or infinity, or -1
  int32_t bad_place;   // the column there
  float bad_value;     // whichever it is
  int32_t dead_columns;
  double mean;       // of the products' diagonal, dead columns left out
  double energy;     // x^T H x over the weight's rows x, H as in `hessian`
  double beside;     // the same over its rows less those of the weight beside it
  double lost;       // and over the residuals, where it was asked for
  double errors;     // squares of the scaled errors
  double residuals;  // and of the residuals
};

struct GptqRun {
  int64_t rows;
  int64_t in;
  int64_t problems;
  GptqState* state;   // [problems]
  int32_t* order;     // [problems, in]: the column that is quantized at a position
  float* largest;     // [problems, in]: of the diagonal, in a column's group
  float* hessian;     // [problems, in, in]: upper triangle, by position; then the factor R, hessian = R R^T
  float* inverse;     // [problems, 64, 64]: of the factor's triangle at hand
  float* upper;       // [problems, blocks, kUpperFloats]: the inverses of R's triangles of the blocks
  float* values;      // [problems, rows, in]: the weights by position; as they are quantized, their residuals
  float* product;     // [problems, splits, rows, 128]
  float* solved;      // [problems, rows, in], with groups of several blocks
  uint8_t* codes;     // [problems, rows, in], in the weight's order of columns
  int32_t* bad;       // [problems, rows]: first column with NaN or infinity, or `in`
  double* errors;     // [problems, rows]
  double* residuals;  // [problems, rows]
  double* partial;    // [problems, tiles]: of the energy
};

/// Columns of a block, at most, and how they are cut: no block ends inside a group that it could hold, and
/// none spans two groups that it could not.
inline constexpr int64_t kGptqBlock = 128;

struct BlockRange {
  int64_t first;
  int64_t cols;
};

struct BlockCut {
  int64_t in;
  int64_t group;  // 0: no groups

  constexpr bool long_groups() const { return group > kGptqBlock; }
  constexpr int64_t width() const {
    return group > 0 && !long_groups() ? kGptqBlock / group * group : kGptqBlock;
  }
  constexpr int64_t blocks_of_group() const { return (group + kGptqBlock - 1) / kGptqBlock; }
  constexpr int64_t blocks() const {
    if (!long_groups()) return (in + width() - 1) / width();
    return in / group * blocks_of_group() + (in % group + kGptqBlock - 1) / kGptqBlock;
  }
  constexpr BlockRange block(int64_t index) const {
    int64_t first = index * width();
    int64_t cols = width();
    if (long_groups()) {
      const int64_t inside = index % blocks_of_group() * kGptqBlock;
      first = index / blocks_of_group() * group + inside;
      cols = group - inside < kGptqBlock ? group - inside : kGptqBlock;
    }
    return {first, in - first < cols ? in - first : cols};
  }
};

/// The inverse of a block's triangle: rows of four begin at their first column that is not under the
/// diagonal, rounded down to a multiple of four; what is under the diagonal or behind the block is 0.
inline constexpr int64_t kUpperFloats = 8448;
constexpr int upper_place(int row, int col) {
  const int stripe = row / 4;
  return 512 * stripe - 8 * stripe * (stripe - 1) + row % 4 * (128 - 4 * stripe) + col - 4 * stripe;
}

// The steps of a run, in order; all queue kernels only.

/// state, and order: columns as they are, or by falling diagonal; groups of `whole_group` columns, if that is
/// not 0, by their largest one.
void measure_products(void* stream, const GptqRun& run, const PerProblem<const float*>& products,
                      bool by_diagonal, int64_t whole_group);
/// hessian = the products by position, over the mean of their diagonal.
void gather_hessian(void* stream, const GptqRun& run, const PerProblem<const float*>& products);
/// Adds the damping, 1 more for dead columns, and factors.
void factor_hessian(void* stream, const GptqRun& run, const PerProblem<const float*>& products,
                    const PerProblem<double>& damping);
void invert_triangles(void* stream, const GptqRun& run, const BlockCut& cut);
/// values = a, less b if it is there, by position; dead columns 0. Also `bad`, of a.
void load_values(void* stream, const GptqRun& run, const PerProblem<ConstMatrix>& a,
                 const PerProblem<ConstMatrix>* b, const PerProblem<const float*>& products);
/// to [rows, in] = a problem's weight in its own order, its dead columns 0.
void copy_live_columns(void* stream, const GptqRun& run, int64_t problem, const ConstMatrix& weight,
                       const float* products, float* to);
/// Parts that the products of a block are cut into along the columns before it, so that there are enough of
/// them for a GPU; each fills [rows, 128] of `product`.
int64_t product_splits(int64_t rows);
/// product = values[:, columns before `depth`] times the factor's rows of these columns at `block`; less what
/// `solved` has from there to the block, times its rows.
void multiply_factor(void* stream, const GptqRun& run, const BlockRange& block, int64_t depth);
/// solved at the block = product times the inverse of its triangle.
void apply_inverse(void* stream, const GptqRun& run, const BlockCut& cut, int64_t block);
/// codes as bit rows: of each row, or all rows as one.
void pack_codes(void* stream, const GptqRun& run, const PerProblem<uint8_t*>& packed, int bits, bool as_one);
/// group_index, in the weight's order of columns, of groups by position.
void index_groups(void* stream, const GptqRun& run, const PerProblem<int32_t*>& group_index, int64_t group);
/// Of 64 rows and 64 columns.
constexpr int64_t energy_tiles(int64_t rows, int64_t in) { return (rows + 63) / 64 * ((in + 63) / 64); }
/// partial = x^T H x by tiles.
void add_energy(void* stream, const GptqRun& run);
/// state: its sum of that name, from partial.
enum class EnergyOf : uint8_t { weight, beside, residuals };
void close_energy(void* stream, const GptqRun& run, EnergyOf rows);
/// state, once the columns are quantized: errors, residuals, and what was bad.
void close_report(void* stream, const GptqRun& run, const PerProblem<ConstMatrix>& weights);

}  // namespace quantaria::ops
