#include "ops/quantize/panels.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/bitpack/bitpack.h"
#include "ops/copy/transpose.h"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/int_grid.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kWordBits = 32;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

bool lies_in_panels(const ConstMatrix& w) {
  return size_of(w.dtype) == 2 && w.row_stride == 1 && w.col_stride > 1 && w.rows > 1 && w.cols > 0;
}

/// Some adjacent rows of a weight: element k of row first + i at from[k * stride + i]. `padded` of them, a
/// multiple of kPanelRows, can be read.
struct Rows {
  const uint16_t* from;
  int64_t stride;
  int64_t first;
  int64_t count;
  int64_t padded;
};

/// Rows of a task: as many as let two passes over one group find it in the second-level cache.
int64_t rows_of_task(int64_t group) {
  constexpr int64_t kGroupBytes = int64_t{1} << 18;
  const int64_t rows = kGroupBytes / (2 * group) / kPanelRows * kPanelRows;
  return std::clamp<int64_t>(rows, 2 * kPanelRows, PanelKernels::kMaxRows);
}

/// The last rows, too few for a panel, padded with zeros.
Rows padded_copy(const ConstMatrix& w, const Rows& rows) {
  uint16_t* const copy = thread_buffer<uint16_t>(Slot::strip, w.cols * kPanelRows);
  std::memset(copy, 0, static_cast<size_t>(w.cols * kPanelRows) * sizeof(uint16_t));
  for (int64_t k = 0; k < w.cols; ++k)
    std::memcpy(copy + k * kPanelRows, rows.from + k * rows.stride, static_cast<size_t>(rows.count) * 2);
  return {copy, kPanelRows, rows.first, rows.count, kPanelRows};
}

/// body(rows) for all rows of w in parallel. Borders depend on shape and group alone.
template <class Body>
void for_each_rows(ThreadPool& pool, const ConstMatrix& w, int64_t group, const Body& body) {
  const int64_t height = rows_of_task(group);
  const int64_t whole = w.rows / kPanelRows * kPanelRows;
  const int64_t tasks = (whole + height - 1) / height;
  const auto* const from = reinterpret_cast<const uint16_t*>(w.data);
  pool.parallel_for(tasks + (whole < w.rows ? 1 : 0), [&](int64_t task) {
    const int64_t first = task < tasks ? task * height : whole;
    const int64_t count = task < tasks ? std::min(height, whole - first) : w.rows - whole;
    const Rows rows{from + first, w.col_stride, first, count, count};
    body(task < tasks ? rows : padded_copy(w, rows));
  });
}

/// Codes and sums of the rows of a task on their way from the panels' order to the rows'.
class Output {
 public:
  Output(const Rows& rows, int64_t in, int64_t group, int bits, bool with_sums)
      : rows_(rows), in_(in), bits_(bits) {
    // So many groups make whole cache lines of words, which the transposition likes.
    constexpr int64_t kWordsPerLine = 16;
    const int64_t words = std::max<int64_t>(1, group * bits / kWordBits);
    visit_ = std::lcm(words, kWordsPerLine) / words * group;
    const int64_t visited = std::min(visit_, round_up(in, group));
    words_ = thread_buffer<uint32_t>(Slot::codes, (visited * bits / kWordBits + 1) * rows.padded);
    if (!with_sums) return;
    sums_ = thread_buffer<PanelSums>(Slot::flat, rows.padded / kPanelRows);
    std::memset(sums_, 0, static_cast<size_t>(rows.padded / kPanelRows) * sizeof(PanelSums));
  }

  Panel panel(int64_t first, int64_t n, int64_t row) const {
    const uint16_t* const from = rows_.from + first * rows_.stride + row;
    return {from, rows_.stride, n, first + 2 * n <= in_ ? from + n * rows_.stride : from};
  }
  PanelWords words(int64_t first, int64_t row) const {
    return {words_ + first % visit_ * bits_ / kWordBits * rows_.padded + row, rows_.padded};
  }
  PanelSums* sums(int64_t row) const { return sums_ == nullptr ? nullptr : sums_ + row / kPanelRows; }

  /// After the group that ends at element `end`: puts the words of a finished visit to the rows' places.
  void flush(int64_t end, uint8_t* packed, int64_t row_bytes) const {
    if (end % visit_ != 0 && end < in_) return;
    const int64_t begin = (end - 1) / visit_ * visit_;
    const int64_t count = ((end - begin) * bits_ + kWordBits - 1) / kWordBits;
    auto* const to =
        reinterpret_cast<uint32_t*>(packed + rows_.first * row_bytes) + begin * bits_ / kWordBits;
    transpose(words_, rows_.padded, rows_.count, count, to,
              row_bytes / static_cast<int64_t>(sizeof(uint32_t)));
  }

  void put_sums(PartSums& to) const {
    for (int64_t i = 0; i < rows_.count; ++i) {
      const PanelSums& panel = sums_[i / kPanelRows];
      LaneSums lanes;
      for (int lane = 0; lane < 16; ++lane) {
        lanes.error[lane] = panel.error[lane][i % kPanelRows];
        lanes.weight[lane] = panel.weight[lane][i % kPanelRows];
      }
      to.put(rows_.first + i, lanes);
    }
  }

 private:
  Rows rows_;
  int64_t in_;
  int bits_;
  int64_t visit_;
  uint32_t* words_;
  PanelSums* sums_ = nullptr;
};

}  // namespace

bool int_panels_fit(const ConstMatrix& w, const IntScheme& scheme) {
  if (!lies_in_panels(w) || scheme.bits > 8 || scheme.mse_search) return false;
  if (scheme.granularity != Granularity::row && scheme.granularity != Granularity::group) return false;
  const int64_t group = group_length(scheme, w.cols);
  return group >= w.cols || group * scheme.bits % kWordBits == 0;
}

bool codebook_panels_fit(const ConstMatrix& w, const CodebookScheme& scheme) {
  return lies_in_panels(w) && bits_of(scheme.book) == 4 && w.cols % piece_unit(scheme) == 0 &&
         scheme.block_size * 4 % kWordBits == 0;
}

void quantize_int_panels(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                         FiniteCheck& check, PartSums& sums) {
  const int64_t in = w.cols;
  const int64_t group = std::min(group_length(scheme, in), in);
  const int64_t groups = (in + group - 1) / group;
  const IntLimits limits = limits_of(scheme);
  const PanelKernels& kernels = panel_kernels(w.dtype == DType::float16);
  for_each_rows(pool, w, group, [&](const Rows& rows) {
    const Output output(rows, in, group, scheme.bits, sums.wanted());
    float* const low = thread_buffer<float>(Slot::constants, 4 * rows.padded);
    float* const high = low + rows.padded;
    float* const scales = high + rows.padded;
    float* const zeros = scheme.symmetric ? nullptr : scales + rows.padded;
    for (int64_t first = 0, g = 0; first < in; first += group, ++g) {
      const int64_t n = std::min(group, in - first);
      const Panel all = output.panel(first, n, 0);
      if (!check.ok(scheme.symmetric ? kernels.absmax(all, rows.padded, high)
                                     : kernels.range(all, rows.padded, low, high)))
        return;
      fit_grids(scheme, low, high, rows.padded, scales, zeros);
      for (int64_t i = 0; i < rows.count; ++i) {
        const int64_t at = (rows.first + i) * groups + g;
        to.scales[at] = scales[i];
        if (zeros != nullptr) to.zeros[at] = static_cast<int32_t>(zeros[i]);
      }
      for (int64_t r = 0; r < rows.padded; r += kPanelRows)
        kernels.encode_int(output.panel(first, n, r), scales + r, zeros == nullptr ? nullptr : zeros + r,
                           limits, scheme.bits, output.words(first, r), output.sums(r));
      output.flush(first + n, to.packed, packed_row_bytes(in, scheme.bits));
    }
    if (sums.wanted()) output.put_sums(sums);
  });
}

void quantize_codebook_panels(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme,
                              uint8_t* packed, float* absmax, FiniteCheck& check, PartSums& sums) {
  const int64_t in = w.cols;
  const int64_t block = scheme.block_size;
  const numerics::Book16& book = table_of(scheme.book);
  const PanelKernels& kernels = panel_kernels(w.dtype == DType::float16);
  for_each_rows(pool, w, block, [&](const Rows& rows) {
    const Output output(rows, in, block, 4, sums.wanted());
    float* const largest = thread_buffer<float>(Slot::constants, rows.padded);
    for (int64_t first = 0; first < in; first += block) {
      if (!check.ok(kernels.absmax(output.panel(first, block, 0), rows.padded, largest))) return;
      for (int64_t i = 0; i < rows.count; ++i) absmax[((rows.first + i) * in + first) / block] = largest[i];
      for (int64_t r = 0; r < rows.padded; r += kPanelRows)
        kernels.encode_book(output.panel(first, block, r), largest + r, book, output.words(first, r),
                            output.sums(r));
      output.flush(first + block, packed, in / 2);
    }
    if (sums.wanted()) output.put_sums(sums);
  });
}

}  // namespace quantaria::ops
