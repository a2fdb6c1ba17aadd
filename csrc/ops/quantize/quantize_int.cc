#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "ops/bitpack/bitpack.h"
#include "ops/bitpack/kernels.h"
#include "ops/quantize/int_grid.h"
#include "ops/quantize/panels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Extrema of the groups of one row; `high` holds the absmax of symmetric schemes, `low` then its negative.
struct RowRanges {
  const float* low;
  const float* high;
  bool finite;
};

RowRanges ranges_of(const IntScheme& scheme, const float* row, int64_t n, int64_t group, FiniteCheck& check) {
  const int64_t groups = (n + group - 1) / group;
  float* const low = thread_buffer<float>(Slot::constants, 2 * groups);
  float* const high = low + groups;
  if (!scheme.symmetric) return {low, high, check.ok(range_kernels().range(row, n, group, low, high))};
  const bool finite = check.ok(range_kernels().absmax(row, n, group, high));
  for (int64_t g = 0; g < groups; ++g) low[g] = -high[g];
  return {low, high, finite};
}

int32_t to_integer(float zero) { return static_cast<int32_t>(zero); }

/// Fits the groups of one row. False if the row is not finite. A row of no elements has the grid of zeros.
bool fit_row(const IntScheme& scheme, const float* row, int64_t n, int64_t group, FiniteCheck& check,
             float* scales, int32_t* zeros) {
  if (n == 0) {
    const IntGrid grid = fit_grid(scheme, 0, 0);
    *scales = grid.scale;
    if (zeros != nullptr) *zeros = grid.zero;
    return true;
  }
  const RowRanges ranges = ranges_of(scheme, row, n, group, check);
  if (!ranges.finite) return false;
  const int64_t groups = (n + group - 1) / group;
  if (!scheme.mse_search) {
    float* const float_zeros = zeros == nullptr ? nullptr : thread_buffer<float>(Slot::flat, groups);
    fit_grids(scheme, ranges.low, ranges.high, groups, scales, float_zeros);
    if (zeros != nullptr) std::transform(float_zeros, float_zeros + groups, zeros, to_integer);
    return true;
  }
  for (int64_t first = 0, g = 0; first < n; first += group, ++g) {
    const IntGrid grid =
        search_grid(scheme, row + first, std::min(group, n - first), ranges.low[g], ranges.high[g]);
    scales[g] = grid.scale;
    if (zeros != nullptr) zeros[g] = grid.zero;
  }
  return true;
}

/// Constants as the kernels take them: zeros as float32 or null.
struct Constants {
  const float* scales;
  const float* zeros;
};

const float* as_floats(const int32_t* zeros, int64_t n) {
  if (zeros == nullptr) return nullptr;
  float* const floats = thread_buffer<float>(Slot::constants, n);
  for (int64_t i = 0; i < n; ++i) floats[i] = static_cast<float>(zeros[i]);
  return floats;
}

/// Encodes rows and packs them.
class RowEncoder {
 public:
  RowEncoder(const IntScheme& scheme, int64_t in, uint8_t* packed)
      : scheme_(scheme),
        limits_(limits_of(scheme)),
        in_(in),
        row_bytes_(packed_row_bytes(in, scheme.bits)),
        packed_(packed) {}

  void encode(int64_t r, const float* row, int64_t group, const Constants& constants, LaneSums* sums) const {
    if (in_ == 0) return;
    const IntKernels& kernels = int_kernels();
    const bool columns = scheme_.granularity == Granularity::column;
    uint8_t* const to = packed_ + r * row_bytes_;
    if (scheme_.bits == 16) {
      uint16_t* const codes = thread_buffer<uint16_t>(Slot::codes, in_ + kCodeSlack);
      if (columns)
        kernels.encode16_columns(row, in_, constants.scales, constants.zeros, limits_, codes, sums);
      else
        kernels.encode16(row, in_, group, constants.scales, constants.zeros, limits_, codes, sums);
      codes[in_] = 0;
      std::memcpy(to, codes, static_cast<size_t>(row_bytes_));
      return;
    }
    uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, in_ + kCodeSlack);
    if (columns)
      kernels.encode8_columns(row, in_, constants.scales, constants.zeros, limits_, codes, sums);
    else
      kernels.encode8(row, in_, group, constants.scales, constants.zeros, limits_, codes, sums);
    std::memset(codes + in_, 0, kPackSlack);
    bit_kernels().pack[scheme_.bits](codes, in_, to);
  }

 private:
  IntScheme scheme_;
  IntLimits limits_;
  int64_t in_;
  int64_t row_bytes_;
  uint8_t* packed_;
};

/// Row and group scales: everything about a row in one visit.
void quantize_by_row(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                     FiniteCheck& check, PartSums& sums) {
  const int64_t group = group_length(scheme, w.cols);
  const int64_t groups = constants_shape(scheme, w.rows, w.cols).cols;
  const RowEncoder encoder(scheme, w.cols, to.packed);
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const int64_t r = first + i;
      const float* const row = strip.row(i);
      float* const scales = to.scales + r * groups;
      int32_t* const zeros = to.zeros == nullptr ? nullptr : to.zeros + r * groups;
      if (groups == 0 || !fit_row(scheme, row, w.cols, group, check, scales, zeros)) continue;
      LaneSums lanes;
      encoder.encode(r, row, group, {scales, as_floats(zeros, groups)}, sums.wanted() ? &lanes : nullptr);
      if (sums.wanted()) sums.put(r, lanes);
    }
  });
}

/// Encodes all rows by constants that they share.
void encode_shared(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme,
                   const Constants& constants, uint8_t* packed, PartSums& sums) {
  const RowEncoder encoder(scheme, w.cols, packed);
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      LaneSums lanes;
      encoder.encode(first + i, strip.row(i), w.cols, constants, sums.wanted() ? &lanes : nullptr);
      if (sums.wanted()) sums.put(first + i, lanes);
    }
  });
}

/// The shrink search over a whole tensor: sums of every factor over all rows, rows added in order.
IntGrid search_tensor(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, float low,
                      float high) {
  if (low == 0 && high == 0) return fit_grid(scheme, low, high);
  using Errors = std::array<double, kShrinkSteps>;
  std::vector<Errors> by_row(static_cast<size_t>(w.rows));
  const IntLimits limits = limits_of(scheme);
  const float unit = error_unit(low, high);
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const float* const row = strip.row(i);
      for (int k = 0; k < kShrinkSteps; ++k) {
        const IntGrid grid = fit_grid(scheme, shrink_factor(k) * low, shrink_factor(k) * high);
        by_row[static_cast<size_t>(first + i)][static_cast<size_t>(k)] =
            int_kernels().shrink_error(row, w.cols, grid.scale, static_cast<float>(grid.zero), limits, unit,
                                       std::numeric_limits<double>::infinity());
      }
    }
  });
  Errors total{};
  for (const Errors& row : by_row)
    for (size_t k = 0; k < total.size(); ++k) total[k] += row[k];
  const auto best = static_cast<int>(std::min_element(total.begin(), total.end()) - total.begin());
  return fit_grid(scheme, shrink_factor(best) * low, shrink_factor(best) * high);
}

void quantize_by_tensor(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                        FiniteCheck& check, PartSums& sums) {
  std::vector<float> low(static_cast<size_t>(w.rows) + 1);
  std::vector<float> high(low.size());
  if (w.cols > 0) {
    for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
      for (int64_t i = 0; i < strip.rows(); ++i) {
        const RowRanges ranges = ranges_of(scheme, strip.row(i), w.cols, w.cols, check);
        low[static_cast<size_t>(first + i)] = *ranges.low;
        high[static_cast<size_t>(first + i)] = *ranges.high;
      }
    });
  }
  check.finish(w);
  const float least = *std::min_element(low.begin(), low.end());
  const float most = *std::max_element(high.begin(), high.end());
  const IntGrid grid =
      scheme.mse_search ? search_tensor(pool, w, scheme, least, most) : fit_grid(scheme, least, most);
  *to.scales = grid.scale;
  if (to.zeros != nullptr) *to.zeros = grid.zero;
  const float zero = static_cast<float>(grid.zero);
  encode_shared(pool, w, scheme, {&grid.scale, &zero}, to.packed, sums);
}

/// The scales of columns are those of the transposed weight's rows.
void quantize_by_column(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                        FiniteCheck& check, PartSums& sums) {
  const size_t padded = static_cast<size_t>((w.cols + 15) / 16 * 16);
  std::vector<float> scales(padded, 1.0f);
  std::vector<float> zeros(padded, 0.0f);
  for_each_strip(pool, transposed_view(w), [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      int32_t zero = 0;
      const auto column = static_cast<size_t>(first + i);
      fit_row(scheme, strip.row(i), w.rows, group_length(scheme, w.rows), check, &scales[column],
              to.zeros == nullptr ? nullptr : &zero);
      zeros[column] = static_cast<float>(zero);
      to.scales[column] = scales[column];
      if (to.zeros != nullptr) to.zeros[column] = zero;
    }
  });
  check.finish(w);
  encode_shared(pool, w, scheme, {scales.data(), zeros.data()}, to.packed, sums);
}

}  // namespace

ConstantsShape constants_shape(const IntScheme& scheme, int64_t out, int64_t in) {
  switch (scheme.granularity) {
    case Granularity::tensor:
      return {1, 1};
    case Granularity::row:
      return {out, 1};
    case Granularity::column:
      return {1, in};
    case Granularity::group:
      return {out, in == 0 ? 0 : (in - 1) / scheme.group_size + 1};
  }
  return {0, 0};
}

void quantize_int(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                  ErrorSums* sums) {
  check_weight(w);
  check_scheme(scheme);
  FiniteCheck check;
  PartSums parts(sums, w.rows);
  if (int_panels_fit(w, scheme)) {
    quantize_int_panels(pool, w, scheme, to, check, parts);
    check.finish(w);
    return parts.finish();
  }
  switch (scheme.granularity) {
    case Granularity::tensor:
      quantize_by_tensor(pool, w, scheme, to, check, parts);
      break;
    case Granularity::column:
      quantize_by_column(pool, w, scheme, to, check, parts);
      break;
    case Granularity::row:
    case Granularity::group:
      quantize_by_row(pool, w, scheme, to, check, parts);
      check.finish(w);
      break;
  }
  parts.finish();
}

}  // namespace quantaria::ops
