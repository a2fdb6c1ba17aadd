#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "ops/copy/convert.h"
#include "ops/gemm/pack.h"
#include "ops/gptq/gptq.h"
#include "ops/gptq/outer_products.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Steps of one call of the kernel: of a right panel 18 KiB, which stay in the first-level cache beside the
/// tiles of the left one. A sum's rounding error grows with this length and the number of runs.
constexpr int64_t kRunSteps = 96;

/// Steps that are packed at a time. All sums are read and written once for them, which takes as long as the
/// products of some thirty steps.
constexpr int64_t kPassSteps = 22 * kRunSteps;

/// Panels along the sides of a square of sums, at most: the square (324 KiB), a run of the panels on its two
/// sides (216 KiB) and the next run on its way fit the second-level cache.
constexpr int64_t kMostSide = 6;
/// Squares along the diagonal that there should be, for the sake of many threads.
constexpr int64_t kSquares = 12;

/// Rows of one task of packing, so that the pages that are read at once fit the first-level TLB.
constexpr int64_t kPackRows = 32;

/// The states of one pass as panels.
class StatePanels {
 public:
  StatePanels(const OuterProducts& kernel, const ConstMatrix& x, const Scratch& scratch)
      : kernel_(kernel),
        x_(x),
        per_step_(values_per_step(kernel.operand)),
        panels_((x.cols + kOuterPanel - 1) / kOuterPanel) {
    const int64_t steps = std::min(kPassSteps, (x.rows + per_step_ - 1) / per_step_);
    // One step more, as equal steps of all panels would otherwise compete for the same few lines of a cache.
    apart_ = (steps + 1) * kOuterPanel;
    memory_ = scratch(panels_ * apart_ * static_cast<int64_t>(sizeof(uint32_t)));
  }

  int64_t panels() const { return panels_; }
  int64_t steps() const { return steps_; }
  const uint32_t* words(int64_t panel, int64_t step) const {
    return words() + panel * apart_ + step * kOuterPanel;
  }

  /// Replaces what is there by the rows from `first` on, as many as a pass takes.
  void pack(ThreadPool& pool, int64_t first) {
    const int64_t rows = std::min(kPassSteps * per_step_, x_.rows - first);
    steps_ = (rows + per_step_ - 1) / per_step_;
    pool.parallel_for((rows + kPackRows - 1) / kPackRows, [&](int64_t task) {
      const int64_t begin = task * kPackRows;
      const ConstMatrix part = part_of(x_, first + begin, std::min(kPackRows, rows - begin), 0, x_.cols);
      for (int64_t panel = 0; panel < panels_; ++panel) {
        const int64_t column = panel * kOuterPanel;
        const int64_t columns = std::min(kOuterPanel, x_.cols - column);
        uint32_t* const to = words() + panel * apart_ + begin / per_step_ * kOuterPanel;
        if (columns < kOuterPanel) std::fill_n(to, (part.rows + per_step_ - 1) / per_step_ * kOuterPanel, 0u);
        pack_part(part_of(part, 0, part.rows, column, columns), to);
      }
    });
  }

 private:
  uint32_t* words() const { return reinterpret_cast<uint32_t*>(memory_->data()); }

  void pack_part(const ConstMatrix& part, uint32_t* to) const {
    if (per_step_ == 1 && part.dtype == DType::float32 && part.col_stride == 1)
      return pack_kernels().copy_rows(reinterpret_cast<const uint32_t*>(part.data), part.row_stride,
                                      part.rows, part.cols, to, kOuterPanel);
    const DType dtype = per_step_ == 1 ? DType::float32 : DType::bfloat16;
    alignas(64) uint32_t rows[2][kOuterPanel];
    for (int64_t r = 0; r < part.rows; r += per_step_, to += kOuterPanel) {
      if (per_step_ == 1) {
        read_row(part, r, dtype, to);
        continue;
      }
      read_row(part, r, dtype, rows[0]);
      if (r + 1 < part.rows)
        read_row(part, r + 1, dtype, rows[1]);
      else
        std::memset(rows[1], 0, sizeof rows[1]);
      pack_kernels().pair(reinterpret_cast<const uint16_t*>(rows[0]),
                          reinterpret_cast<const uint16_t*>(rows[1]), part.cols, to);
    }
  }

  static void read_row(const ConstMatrix& part, int64_t r, DType dtype, void* to) {
    const int64_t size = size_of(part.dtype);
    const std::byte* const from = part.data + r * part.row_stride * size;
    auto* const bytes = static_cast<std::byte*>(to);
    if (part.col_stride == 1) return convert_row(part.dtype, from, dtype, bytes, part.cols);
    for (int64_t c = 0; c < part.cols; ++c)
      convert_row(part.dtype, from + c * part.col_stride * size, dtype, bytes + c * size_of(dtype), 1);
  }

  const OuterProducts& kernel_;
  ConstMatrix x_;
  int64_t per_step_;
  int64_t panels_;
  int64_t apart_ = 0;
  int64_t steps_ = 0;
  std::shared_ptr<Storage> memory_;
};

/// Panels [first_row, end_row) times panels [first_column, end_column).
struct Square {
  int64_t first_row, end_row;
  int64_t first_column, end_column;
  bool diagonal() const { return first_row == first_column; }
};

/// Squares that cover the upper triangle, those with the most work first: the end is then shared evenly.
std::vector<Square> squares_of(int64_t panels) {
  const int64_t side = std::clamp<int64_t>(panels / kSquares, 1, kMostSide);
  std::vector<Square> squares;
  for (int64_t column = 0; column < panels; column += side)
    for (int64_t row = 0; row <= column; row += side)
      squares.push_back({row, std::min(panels, row + side), column, std::min(panels, column + side)});
  const auto work = [](const Square& s) {
    return (s.end_row - s.first_row) * (s.end_column - s.first_column) * (s.diagonal() ? 1 : 2);
  };
  std::stable_sort(squares.begin(), squares.end(),
                   [&](const Square& a, const Square& b) { return work(a) > work(b); });
  return squares;
}

/// What the next run of a square reads, for the calls of this run to ask for: call number `call` gets a third
/// of a panel's run, as much as it takes. Something that is there already where nothing is left to ask for.
const void* ahead(const Square& square, const StatePanels& states, int64_t next_step, int64_t call) {
  constexpr int64_t kParts = kOuterPanel * static_cast<int64_t>(sizeof(uint32_t)) / kAheadBytes;
  const int64_t rows = square.end_row - square.first_row;
  const int64_t columns = square.diagonal() ? 0 : square.end_column - square.first_column;
  const int64_t index = call / kParts;
  if (index >= rows + columns || next_step >= states.steps()) return states.words(square.first_row, 0);
  const int64_t panel = index < rows ? square.first_row + index : square.first_column + index - rows;
  return reinterpret_cast<const std::byte*>(states.words(panel, next_step)) +
         call % kParts * kRunSteps * kAheadBytes;
}

/// products += the outer products of one pass, inside a square.
void add_square(const OuterProducts& kernel, const StatePanels& states, const Square& square, int64_t in,
                float* products) {
  const int64_t stride = (square.end_column - square.first_column) * kOuterPanel;
  const int64_t height = (square.end_row - square.first_row) * kOuterPanel;
  float* const sums = thread_buffer<float>(Slot::sums, height * stride);
  std::fill_n(sums, height * stride, 0.0f);
  for (int64_t step = 0; step < states.steps(); step += kRunSteps) {
    const int64_t run = std::min(kRunSteps, states.steps() - step);
    int64_t call = 0;
    for (int64_t j = square.first_column; j < square.end_column; ++j)
      for (int64_t i = square.first_row; i < square.end_row && i <= j; ++i) {
        const OuterPart part{std::min(kOuterPanel, in - i * kOuterPanel),
                             std::min(kOuterPanel, in - j * kOuterPanel), i == j};
        float* const to = sums + ((i - square.first_row) * stride + j - square.first_column) * kOuterPanel;
        kernel.add(run, states.words(i, step), states.words(j, step), part,
                   ahead(square, states, step + run, call++), to, stride);
      }
  }
  const int64_t first_column = square.first_column * kOuterPanel;
  const int64_t columns = std::min(in, square.end_column * kOuterPanel) - first_column;
  for (int64_t r = square.first_row * kOuterPanel; r < std::min(in, square.end_row * kOuterPanel); ++r) {
    const float* const from = sums + (r - square.first_row * kOuterPanel) * stride;
    float* const to = products + r * in + first_column;
    const int64_t c = std::max<int64_t>(0, r - first_column);
    kernel.add_sums(from + c, columns - c, to + c);
  }
}

/// Products of two bfloat16 are exact either way.
const OuterProducts& kernel_for(DType dtype) {
  const OuterProducts* const pairs = dtype == DType::bfloat16 ? bfloat16_outer_products() : nullptr;
  return pairs != nullptr ? *pairs : float32_outer_products();
}

}  // namespace

void add_outer_products(ThreadPool& pool, const ConstMatrix& x, float* products, const Scratch& scratch) {
  check_weight(x, "x");
  if (x.rows == 0 || x.cols == 0) return;
  const OuterProducts& kernel = kernel_for(x.dtype);
  const std::vector<Square> squares = squares_of((x.cols + kOuterPanel - 1) / kOuterPanel);
  StatePanels states(kernel, x, scratch);
  for (int64_t first = 0; first < x.rows; first += kPassSteps * values_per_step(kernel.operand)) {
    states.pack(pool, first);
    pool.parallel_for(static_cast<int64_t>(squares.size()), [&](int64_t i) {
      add_square(kernel, states, squares[static_cast<size_t>(i)], x.cols, products);
    });
  }
}

void add_outer_products(ThreadPool& pool, const ConstMatrix& x, std::span<const int32_t> counts,
                        float* products, const Scratch& scratch) {
  int64_t first = 0;
  for (const int32_t count : counts) {
    const int64_t rows = std::clamp<int64_t>(count, 0, x.rows - first);
    add_outer_products(pool, part_of(x, first, rows, 0, x.cols), products, scratch);
    first += rows;
    products += x.cols * x.cols;
  }
}

void hessian_of(ThreadPool& pool, const float* products, int64_t in, int64_t samples, float* hessian) {
  const double scale = samples > 0 ? 2.0 / static_cast<double>(samples) : 0.0;
  // Square tiles: the lower triangle is read along columns.
  constexpr int64_t kTile = 64;
  const int64_t tiles = (in + kTile - 1) / kTile;
  pool.parallel_for(tiles, [&](int64_t tile) {
    const int64_t end = std::min(in, (tile + 1) * kTile);
    for (int64_t first = 0; first < in; first += kTile)
      for (int64_t i = tile * kTile; i < end; ++i)
        for (int64_t j = first; j < std::min(in, first + kTile); ++j) {
          const float product = products[std::min(i, j) * in + std::max(i, j)];
          hessian[i * in + j] = samples > 0 ? static_cast<float>(scale * static_cast<double>(product)) : 0.0f;
        }
  });
}

}  // namespace quantaria::ops
