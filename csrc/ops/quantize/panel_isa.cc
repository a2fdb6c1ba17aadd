#include "cpu/lanes.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "ops/quantize/codebook_lanes.h"
#include "ops/quantize/int_lanes.h"
#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// ------------------------------------------------------------------------------------------------ extrema
// On the 16-bit patterns as they are: as integers they are in the order of the values once the magnitude
// bits of negative ones are inverted.

constexpr int kShortBytes = kRegisterBytes < 32 ? kRegisterBytes : 32;
constexpr int kShortRegisters = 2 * kPanelRows / kShortBytes;
using ShortRegister [[gnu::vector_size(kShortBytes)]] = int16_t;
struct Shorts {
  ShortRegister part[kShortRegisters];
};

QUANTARIA_LANES Shorts load_shorts(const uint16_t* from) {
  Shorts x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
template <class F, class... Args>
QUANTARIA_LANES Shorts each_short(F&& f, const Args&... args) {
  Shorts result;
  for (int i = 0; i < kShortRegisters; ++i) result.part[i] = f(args.part[i]...);
  return result;
}
constexpr int16_t kMagnitude = 0x7fff;
QUANTARIA_LANES Shorts magnitude_of(const Shorts& x) {
  return each_short([](auto v) { return v & kMagnitude; }, x);
}
QUANTARIA_LANES Shorts ordered(const Shorts& x) {
  return each_short([](auto v) { return v ^ ((v >> 15) & kMagnitude); }, x);
}
QUANTARIA_LANES Shorts most_of(const Shorts& x, const Shorts& y) {
  return each_short([](auto v, auto u) { return v > u ? v : u; }, x, y);
}
QUANTARIA_LANES Shorts least_of(const Shorts& x, const Shorts& y) {
  return each_short([](auto v, auto u) { return v < u ? v : u; }, x, y);
}

template <bool kHalf>
QUANTARIA_LANES float value_of(int16_t bits) {
  const auto pattern = static_cast<uint16_t>(bits);
  return kHalf ? numerics::float_from_half(pattern) : numerics::float_from_bfloat16(pattern);
}

/// Calls body(r, x) for each element k of each sixteen rows r.., whole rows of memory at a time: the whole
/// panel streams through, a few k in one visit of the extrema.
template <class Visit>
QUANTARIA_LANES void for_each_row_of_memory(const Panel& panel, int64_t rows, Visit&& visit) {
  constexpr int kPerVisit = 4;
  int64_t k = 0;
  for (; k + kPerVisit <= panel.n; k += kPerVisit)
    for (int64_t r = 0; r < rows; r += kPanelRows) {
      Shorts x[kPerVisit];
      for (int i = 0; i < kPerVisit; ++i) x[i] = load_shorts(panel.from + (k + i) * panel.stride + r);
      visit(r / kPanelRows, x, kPerVisit);
    }
  for (; k < panel.n; ++k)
    for (int64_t r = 0; r < rows; r += kPanelRows) {
      const Shorts x = load_shorts(panel.from + k * panel.stride + r);
      visit(r / kPanelRows, &x, 1);
    }
}

constexpr int64_t kMaxBlocks = PanelKernels::kMaxRows / kPanelRows;

/// The values of `rows` patterns, a bit pattern in each lane of the blocks.
template <bool kHalf>
QUANTARIA_LANES void put_values(const Shorts* blocks, int64_t rows, float* to) {
  int16_t patterns[PanelKernels::kMaxRows];
  std::memcpy(patterns, blocks, static_cast<size_t>(rows) * sizeof(int16_t));
  for (int64_t r = 0; r < rows; ++r) to[r] = value_of<kHalf>(patterns[r]);
}

template <bool kHalf>
QUANTARIA_LANES uint32_t largest_bits(const Shorts* blocks, int64_t rows) {
  Shorts largest = blocks[0];
  for (int64_t block = 1; block < rows / kPanelRows; ++block) largest = most_of(largest, blocks[block]);
  int16_t patterns[kPanelRows];
  std::memcpy(patterns, &largest, sizeof patterns);
  int16_t over_all = 0;
  for (const int16_t pattern : patterns) over_all = pattern > over_all ? pattern : over_all;
  return numerics::bits_of(value_of<kHalf>(over_all));
}

template <bool kHalf>
uint32_t absmax(const Panel& panel, int64_t rows, float* to) {
  Shorts largest[kMaxBlocks] = {};
  for_each_row_of_memory(panel, rows, [&](int64_t block, const Shorts* x, int count) {
    Shorts most = largest[block];
    for (int i = 0; i < count; ++i) most = most_of(most, magnitude_of(x[i]));
    largest[block] = most;
  });
  put_values<kHalf>(largest, rows, to);
  return largest_bits<kHalf>(largest, rows);
}

template <bool kHalf>
uint32_t range(const Panel& panel, int64_t rows, float* low, float* high) {
  Shorts least[kMaxBlocks] = {};
  Shorts most[kMaxBlocks] = {};
  Shorts largest = {};
  for_each_row_of_memory(panel, rows, [&](int64_t block, const Shorts* x, int count) {
    Shorts under = least[block];
    Shorts over = most[block];
    for (int i = 0; i < count; ++i) {
      const Shorts value = ordered(x[i]);
      under = least_of(under, value);
      over = most_of(over, value);
      largest = most_of(largest, magnitude_of(x[i]));
    }
    least[block] = under;
    most[block] = over;
  });
  for (int64_t block = 0; block < rows / kPanelRows; ++block) least[block] = ordered(least[block]);
  put_values<kHalf>(least, rows, low);
  put_values<kHalf>(most, rows, high);
  return largest_bits<kHalf>(&largest, kPanelRows);
}

// --------------------------------------------------------------------------------------------------- codes

/// Joins codes to the words of a bit row, each lane for itself.
class BitStream {
 public:
  BitStream(int bits, const PanelWords& words) : bits_(bits), words_(words) {}

  [[gnu::always_inline]] void add(const Ints& code) {
    word_ = word_ | shift_left(code, at_);
    at_ += bits_;
    if (at_ < 32) return;
    at_ -= 32;
    store(words_.to, word_);
    words_.to += words_.stride;
    word_ = shift_right(code, bits_ - at_);
  }
  [[gnu::always_inline]] void finish() {
    if (at_ > 0) store(words_.to, word_);
  }

 private:
  int bits_;
  int at_ = 0;
  PanelWords words_;
  Ints word_ = splat(int32_t{0});
};

template <bool kHalf>
QUANTARIA_LANES Floats load_values(const uint16_t* from) {
  return kHalf ? load_half(from) : load_bfloat16(from);
}

struct Encoded {
  Ints code;
  Floats kept;
};

/// encode(values) -> Encoded for each element of sixteen rows.
template <bool kHalf, bool kSums, class Encode>
QUANTARIA_LANES void encode_panel(const Panel& panel, int bits, const PanelWords& words, PanelSums* sums,
                                  const Encode& encode) {
  BitStream stream(bits, words);
  // Copies, which the stores below cannot change as far as the compiler knows.
  const auto [from, stride, n, ahead] = panel;
  for (int64_t k = 0; k < n; ++k) {
    __builtin_prefetch(ahead + k * stride);
    const Floats w = load_values<kHalf>(from + k * stride);
    const Encoded encoded = encode(w);
    stream.add(encoded.code);
    if constexpr (kSums) {
      const Floats lost = w - encoded.kept;
      float* const error = sums->error[k % kLanes];
      float* const weight = sums->weight[k % kLanes];
      store(error, load(error) + lost * lost);
      store(weight, load(weight) + w * w);
    }
  }
  stream.finish();
}

template <bool kHalf>
void encode_int(const Panel& panel, const float* scales, const float* zeros, const IntLimits& limits,
                int bits, const PanelWords& words, PanelSums* sums) {
  const Grid grid = grid_of(load(scales), zeros == nullptr ? splat(0.0f) : load(zeros), limits);
  const Ints mask = splat(static_cast<int32_t>((1 << bits) - 1));
  const auto encode = [&](const Floats& w) -> Encoded {
    const Floats magic = rounded(w, grid);
    return {(ops::QUANTARIA_ISA::bits(magic) + grid.offset) & mask,
            (magic - splat(numerics::kRoundingMagic)) * grid.scale};
  };
  if (sums == nullptr)
    encode_panel<kHalf, false>(panel, bits, words, sums, encode);
  else
    encode_panel<kHalf, true>(panel, bits, words, sums, encode);
}

template <bool kHalf, class Search>
QUANTARIA_LANES void encode_book_by(const Panel& panel, const float* absmax_of_rows,
                                    const numerics::Book16& book, const Search& search,
                                    const PanelWords& words, PanelSums* sums) {
  const Floats values = load(book.values);
  const Floats patterns = as_floats(widen(book.patterns));
  const Floats absmax = load(absmax_of_rows);
  Floats first = splat(1.0f);
  Floats second = splat(1.0f) / absmax;
  const bool tiny = smallest_of(absmax) < kLeastWithReciprocal;
  if (tiny) {
    float factors[2][kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const Normaliser normaliser = normaliser_of(absmax_of_rows[r]);
      factors[0][r] = normaliser.first;
      factors[1][r] = normaliser.second;
    }
    first = load(factors[0]);
    second = load(factors[1]);
  }
  const auto encode = [&](const Floats& w) -> Encoded {
    const Ints rank = search.rank_of((tiny ? w * first : w) * second);
    return {bits(look_up(patterns, rank)), look_up(values, rank) * absmax};
  };
  if (sums == nullptr)
    encode_panel<kHalf, false>(panel, 4, words, sums, encode);
  else
    encode_panel<kHalf, true>(panel, 4, words, sums, encode);
}

template <bool kHalf>
void encode_book(const Panel& panel, const float* absmax, const numerics::Book16& book,
                 const PanelWords& words, PanelSums* sums) {
#if defined(__AVX512F__)
  if (book.one_per_bucket) return encode_book_by<kHalf>(panel, absmax, book, BucketSearch(book), words, sums);
#endif
  encode_book_by<kHalf>(panel, absmax, book, BinarySearch(book), words, sums);
}

}  // namespace

extern const PanelKernels panel_kernels[2];
const PanelKernels panel_kernels[2] = {
    {absmax<false>, range<false>, encode_int<false>, encode_book<false>},
    {absmax<true>, range<true>, encode_int<true>, encode_book<true>},
};

}  // namespace quantaria::ops::QUANTARIA_ISA
