#include "ops/gptq/rows.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/bitpack/kernels.h"

namespace quantaria::ops {
namespace {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t elements)
      : memory_(std::make_unique_for_overwrite<T[]>(static_cast<size_t>(elements) + kAlignment / sizeof(T))) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  T* data() const { return data_; }

 private:
  static constexpr size_t kAlignment = 64;
  std::unique_ptr<T[]> memory_;
  T* data_;
};

constexpr int64_t kBlockElements = kBlockCols * kStripRows;

class Rows {
 public:
  Rows(const GptqRows& shared, int64_t first, int64_t rows)
      : shared_(shared),
        kernels_(gptq_kernels()),
        first_(first),
        rows_(rows),
        in_(shared.weight.cols),
        strips_((rows + kStripRows - 1) / kStripRows),
        grids_(shared.grids.count()),
        values_(strips_ * strip_elements()),
        codes_(strips_ * strip_elements()),
        scales_(strips_ * grids_ * kStripRows),
        zeros_(strips_ * grids_ * kStripRows),
        product_(strips_ * kBlockElements),
        block_(strips_ * kBlockElements),
        errors_(static_cast<size_t>(strips_ * kStripRows)),
        residuals_(errors_.size()) {}

  bool load(FiniteCheck& check);
  /// `values` = weights less those beside.
  void load_beside();
  void quantize();
  /// x^T H x of each row x of what `values` holds: the weights, and after quantize() their residuals.
  void add_energy(double RowSums::* member, RowSums* sums);
  /// That of the residuals from what quantize() has summed, if it is exact enough.
  bool add_error(RowSums* sums) const;
  void write() const;

 private:
  int64_t strip_elements() const { return in_ * kStripRows; }
  float* values(int64_t strip, int64_t col) const {
    return values_.data() + strip * strip_elements() + col * kStripRows;
  }
  void load_grids();
  void update(const FactorBlock& block);
  void fit_long_group(size_t block);
  void quantize_block(const FactorBlock& block);
  void fit(int64_t strip, const float* weights, int64_t cols, int64_t grid);

  const GptqRows& shared_;
  const GptqKernels& kernels_;
  int64_t first_;
  int64_t rows_;
  int64_t in_;
  int64_t strips_;
  int64_t grids_;
  Buffer<float> values_;  // strips of the weights, column by column as they are quantized their residuals
  Buffer<uint8_t> codes_;
  Buffer<float> scales_;  // the two numbers of each grid, [strip, grid, row]
  Buffer<float> zeros_;
  Buffer<float> product_;
  Buffer<float> block_;
  std::vector<double> errors_;     // of the strips' rows: squares of the scaled errors
  std::vector<double> residuals_;  // and of the residuals
};

bool Rows::load(FiniteCheck& check) {
  const std::vector<int64_t>& order = shared_.factor.order();
  const Strip strip(part_of(shared_.weight, first_, rows_, 0, in_));
  bool finite = true;
  for (int64_t r = 0; r < strips_ * kStripRows; ++r) {
    float* const to = values(r / kStripRows, 0) + r % kStripRows;
    if (r >= rows_) {
      for (int64_t p = 0; p < in_; ++p) to[p * kStripRows] = 0;
      continue;
    }
    const float* const row = strip.row(r);
    float absmax = 0;
    finite &= check.ok(range_kernels().absmax(row, in_, in_, &absmax));
    for (int64_t p = 0; p < in_; ++p) to[p * kStripRows] = row[order[static_cast<size_t>(p)]];
  }
  for (int64_t p = 0; p < in_; ++p)
    if (shared_.factor.dead()[static_cast<size_t>(p)])
      for (int64_t s = 0; s < strips_; ++s) std::fill_n(values(s, p), kStripRows, 0.0f);
  if (shared_.fitted_group == 0) load_grids();
  return finite;
}

void Rows::load_beside() {
  const std::vector<int64_t>& order = shared_.factor.order();
  std::fill_n(values(0, 0), strips_ * strip_elements(), 0.0f);
  // One after the other: strips of one thread share their memory.
  for (const auto& [weight, sign] : {std::pair{&shared_.weight, 1.0f}, std::pair{shared_.beside, -1.0f}}) {
    const Strip strip(part_of(*weight, first_, rows_, 0, in_));
    for (int64_t r = 0; r < rows_; ++r) {
      float* const to = values(r / kStripRows, 0) + r % kStripRows;
      const float* const row = strip.row(r);
      for (int64_t p = 0; p < in_; ++p) to[p * kStripRows] += sign * row[order[static_cast<size_t>(p)]];
    }
  }
}

void Rows::load_grids() {
  for (int64_t r = 0; r < strips_ * kStripRows; ++r)
    for (int64_t g = 0; g < grids_; ++g) {
      const int64_t to = (r / kStripRows * grids_ + g) * kStripRows + r % kStripRows;
      shared_.grids.load(first_ + std::min(r, rows_ - 1), g, scales_.data() + to, zeros_.data() + to);
    }
}

void Rows::add_energy(double RowSums::* member, RowSums* sums) {
  for (const FactorBlock& block : shared_.factor.blocks()) {
    std::fill_n(product_.data(), strips_ * kBlockElements, 0.0f);
    kernels_.product(strips_, block.first + block.cols, block.cols, 1.0f, values(0, 0), strip_elements(),
                     block.hessian, block.hessian_apart(), product_.data(), kBlockElements);
    for (int64_t s = 0; s < strips_; ++s) {
      double rows[kStripRows] = {};
      kernels_.add_dots(product_.data() + s * kBlockElements, values(s, block.first), block.cols, rows);
      for (const double row : rows) sums[s].*member += 2 * row;
    }
  }
}

/// With R R^T = H + damping the residuals D have D R = E, the errors that were spread, each divided by its
/// diagonal element of U: D H D^T = E E^T - damping D D^T. The sums lose digits where the damping is most of
/// the difference's first term.
bool Rows::add_error(RowSums* sums) const {
  constexpr double kLeastLeft = 0.25;
  const auto sum = [](const std::vector<double>& rows) {
    return std::accumulate(rows.begin(), rows.end(), 0.0);
  };
  const double damping = shared_.factor.damping();
  if (!(sum(errors_) - damping * sum(residuals_) >= kLeastLeft * sum(errors_))) return false;
  for (size_t r = 0; r < errors_.size(); ++r)
    sums[r / kStripRows].error += errors_[r] - damping * residuals_[r];
  return true;
}

void Rows::quantize() {
  const std::vector<FactorBlock>& blocks = shared_.factor.blocks();
  for (size_t b = 0; b < blocks.size(); ++b) {
    if (shared_.long_groups && blocks[b].first % shared_.fitted_group == 0) fit_long_group(b);
    update(blocks[b]);
    quantize_block(blocks[b]);
  }
}

/// block_ = the block's weights with the errors of all columns before it made up for: W + (D R) U, where D
/// are the residuals W - Q of those columns, R their rows of the factor and U the inverse of its triangle
/// here.
void Rows::update(const FactorBlock& block) {
  for (int64_t s = 0; s < strips_; ++s)
    std::copy_n(values(s, block.first), block.cols * kStripRows, block_.data() + s * kBlockElements);
  if (block.first == 0) return;
  std::fill_n(product_.data(), strips_ * kBlockElements, 0.0f);
  kernels_.product(strips_, block.first, block.cols, 1.0f, values(0, 0), strip_elements(), block.factor,
                   block.factor_apart(), product_.data(), kBlockElements);
  kernels_.product(strips_, block.cols, block.cols, 1.0f, product_.data(), kBlockElements, block.upper_panels,
                   block.upper_panels_apart, block_.data(), kBlockElements);
}

/// A group of several blocks: all its columns are updated as they stand when its first one is reached. With
/// G the group's columns that is W + Y for Y R(G, G) = D R(before, G), solved block by block.
void Rows::fit_long_group(size_t first_block) {
  const std::vector<FactorBlock>& blocks = shared_.factor.blocks();
  const int64_t begin = blocks[first_block].first;
  const int64_t end = std::min(in_, begin + shared_.fitted_group);
  const int64_t elements = (end - begin) * kStripRows;
  const Buffer<float> solved(strips_ * elements);
  for (size_t b = first_block; b < blocks.size() && blocks[b].first < end; ++b) {
    const FactorBlock& block = blocks[b];
    const int64_t before = block.first - begin;
    std::fill_n(product_.data(), strips_ * kBlockElements, 0.0f);
    std::fill_n(block_.data(), strips_ * kBlockElements, 0.0f);
    kernels_.product(strips_, begin, block.cols, 1.0f, values(0, 0), strip_elements(), block.factor,
                     block.factor_apart(), product_.data(), kBlockElements);
    kernels_.product(strips_, before, block.cols, -1.0f, solved.data(), elements,
                     block.factor + begin * kPanelCols, block.factor_apart(), product_.data(),
                     kBlockElements);
    kernels_.product(strips_, block.cols, block.cols, 1.0f, product_.data(), kBlockElements,
                     block.upper_panels, block.upper_panels_apart, block_.data(), kBlockElements);
    for (int64_t s = 0; s < strips_; ++s)
      std::copy_n(block_.data() + s * kBlockElements, block.cols * kStripRows,
                  solved.data() + s * elements + before * kStripRows);
  }
  for (int64_t s = 0; s < strips_; ++s) {
    float* const updated = solved.data() + s * elements;
    for (int64_t i = 0; i < elements; ++i) updated[i] += values(s, begin)[i];
    fit(s, updated, end - begin, begin / shared_.fitted_group);
  }
}

void Rows::quantize_block(const FactorBlock& block) {
  const int64_t group = shared_.fitted_group;
  const bool fits = group > 0 && !shared_.long_groups;
  for (int64_t s = 0; s < strips_; ++s) {
    float* const weights = block_.data() + s * kBlockElements;
    const StripBlock strip{block.cols,
                           weights,
                           values(s, block.first),
                           codes_.data() + s * strip_elements() + block.first * kStripRows,
                           block.upper,
                           errors_.data() + s * kStripRows,
                           residuals_.data() + s * kStripRows};
    const StripGrids grids{scales_.data() + s * grids_ * kStripRows, zeros_.data() + s * grids_ * kStripRows,
                           shared_.grid_of_column.data() + block.first};
    const int64_t step = fits ? group : block.cols;
    for (int64_t first = 0; first < block.cols; first += step) {
      const int64_t last = std::min(block.cols, first + step);
      if (fits) fit(s, weights + first * kStripRows, last - first, (block.first + first) / group);
      shared_.grids.quantize(strip, first, last, grids);
    }
  }
}

/// The grids of one group of a strip's rows, from weights as they stand.
void Rows::fit(int64_t strip, const float* weights, int64_t cols, int64_t grid) {
  const int64_t at = (strip * grids_ + grid) * kStripRows;
  shared_.grids.fit(first_ + strip * kStripRows, weights, cols, scales_.data() + at, zeros_.data() + at);
}

void Rows::write() const {
  const std::vector<int64_t>& order = shared_.factor.order();
  uint8_t* const row = thread_buffer<uint8_t>(Slot::codes, in_ + kPackSlack);
  std::memset(row + in_, 0, kPackSlack);
  for (int64_t r = 0; r < rows_; ++r) {
    const int64_t s = r / kStripRows;
    const uint8_t* const from = codes_.data() + s * strip_elements() + r % kStripRows;
    for (int64_t p = 0; p < in_; ++p) row[order[static_cast<size_t>(p)]] = from[p * kStripRows];
    const int64_t grids = s * grids_ * kStripRows + r % kStripRows;
    shared_.grids.write(first_ + r, row, scales_.data() + grids, zeros_.data() + grids);
  }
}

}  // namespace

void quantize_rows(const GptqRows& shared, int64_t first, int64_t rows, FiniteCheck& check, RowSums* sums) {
  Rows task(shared, first, rows);
  if (shared.beside != nullptr) {
    task.load_beside();
    task.add_energy(&RowSums::beside, sums);
  }
  if (!task.load(check)) return;
  task.add_energy(&RowSums::weight, sums);
  task.quantize();
  if (!task.add_error(sums)) task.add_energy(&RowSums::error, sums);
  task.write();
}

}  // namespace quantaria::ops
