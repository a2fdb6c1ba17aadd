#include "cpu/lanes.h"
#include "ops/quantize/codebook_lanes.h"
#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

template <bool kSums, class Search>
void encode4_blocks(const float* row, int64_t n, int64_t block, const float* absmax,
                    const numerics::Book16& book, const Search& search, uint8_t* codes, LaneSums* sums) {
  const Floats values = load(book.values);
  const Floats patterns = as_floats(widen(book.patterns));
  Floats error = splat(0.0f);
  Floats weight = splat(0.0f);
  for (int64_t first = 0, b = 0; first < n; first += block, ++b) {
    const int64_t size = n - first < block ? n - first : block;
    const Normaliser normaliser = normaliser_of(absmax[b]);
    const auto encode_lanes = [&](int64_t j, const Floats& w, const Floats& v) {
      const Ints rank = search.rank_of(v);
      store_low(codes + first + j, bits(look_up(patterns, rank)));
      if constexpr (kSums) {
        const Floats lost = w - look_up(values, rank) * splat(absmax[b]);
        error = error + lost * lost;
        weight = weight + w * w;
      }
    };
    if (normaliser.first == 1.0f) {
      for_each_lanes(row + first, size,
                     [&](int64_t j, const Floats& w) { encode_lanes(j, w, w * splat(normaliser.second)); });
    } else {
      for_each_lanes(row + first, size, [&](int64_t j, const Floats& w) {
        encode_lanes(j, w, w * splat(normaliser.first) * splat(normaliser.second));
      });
    }
  }
  if constexpr (kSums) {
    store(sums->error, load(sums->error) + error);
    store(sums->weight, load(sums->weight) + weight);
  }
}

template <class Search>
void encode4_by(const float* row, int64_t n, int64_t block, const float* absmax, const numerics::Book16& book,
                const Search& search, uint8_t* codes, LaneSums* sums) {
  const auto encode = sums == nullptr ? encode4_blocks<false, Search> : encode4_blocks<true, Search>;
  encode(row, n, block, absmax, book, search, codes, sums);
}

void encode4(const float* row, int64_t n, int64_t block, const float* absmax, const numerics::Book16& book,
             uint8_t* codes, LaneSums* sums) {
#if defined(__AVX512F__)
  if (book.one_per_bucket) return encode4_by(row, n, block, absmax, book, BucketSearch(book), codes, sums);
#endif
  encode4_by(row, n, block, absmax, book, BinarySearch(book), codes, sums);
}

void decode4(const uint8_t* codes, int64_t n, int64_t block, const float* absmax,
             const numerics::Book16& book, float* row) {
  const Floats decoded = load(book.decoded);
  for (int64_t first = 0, b = 0; first < n; first += block, ++b) {
    const int64_t size = n - first < block ? n - first : block;
    const Floats scale = splat(absmax[b]);
    for (int64_t j = 0; j < size; j += kLanes) {
      const Floats values = look_up(decoded, widen(codes + first + j)) * scale;
      if (j + kLanes <= size)
        store(row + first + j, values);
      else
        store_some(row + first + j, values, size - j);
    }
  }
}

// In the map's 21 binades, from 2^-21 to 1, at most one threshold lies between neighbouring floats of 6
// mantissa bits. So the number of thresholds under such a bucket's least value, looked up, is the code or
// one less. Magnitudes under 2^-22 lie between the thresholds around 0.
constexpr int kBucketShift = 23 - 6;
constexpr uint32_t kFirstBucket = (127u - 22u) << 6;
constexpr uint32_t kBuckets = (22u << 6) + 1;

struct DynamicTable {
  uint8_t base[2][kBuckets];  // [sign][bucket of the magnitude]
};

constexpr DynamicTable make_dynamic_table() {
  DynamicTable table{};
  const auto& thresholds = numerics::kDynamic8.thresholds;
  int above = 0;
  for (uint32_t b = 0; b < kBuckets; ++b) {
    const float least = b == 0 ? 0.0f : numerics::float_of((kFirstBucket + b) << kBucketShift);
    while (least > thresholds[above]) ++above;
    table.base[0][b] = static_cast<uint8_t>(above);
  }
  // Negative buckets run from the largest magnitude, the next bucket's least, inclusive here.
  int below = 0;
  for (uint32_t b = kBuckets; b-- > 0;) {
    const float most = -numerics::float_of((kFirstBucket + b + 1) << kBucketShift);
    while (most > thresholds[below]) ++below;
    table.base[1][b] = static_cast<uint8_t>(below);
  }
  return table;
}

constexpr DynamicTable kDynamicTable = make_dynamic_table();

QUANTARIA_LANES uint8_t encode_dynamic(float v) {
  const uint32_t bits = numerics::bits_of(v);
  const uint32_t bucket = (bits & ~numerics::kSignBit) >> kBucketShift;
  const uint32_t inside = bucket > kFirstBucket ? bucket - kFirstBucket : 0;
  const uint32_t base = kDynamicTable.base[bits >> 31][inside < kBuckets ? inside : kBuckets - 1];
  return static_cast<uint8_t>(base + (v > numerics::kDynamic8.thresholds[base] ? 1u : 0u));
}

void encode8(const float* row, int64_t n, int64_t block, const float* absmax, uint8_t* codes) {
  for (int64_t first = 0, b = 0; first < n; first += block, ++b) {
    const int64_t last = n - first < block ? n : first + block;
    const Normaliser normaliser = normaliser_of(absmax[b]);
    for (int64_t j = first; j < last; ++j)
      codes[j] = encode_dynamic(row[j] * normaliser.first * normaliser.second);
  }
}

void decode8(const uint8_t* codes, int64_t n, int64_t block, const float* absmax, float* row) {
  for (int64_t first = 0, b = 0; first < n; first += block, ++b) {
    const int64_t last = n - first < block ? n : first + block;
    const float scale = absmax[b];
    for (int64_t j = first; j < last; ++j) row[j] = numerics::kDynamic8.values[codes[j]] * scale;
  }
}

}  // namespace

extern const CodebookKernels codebook_kernels;
const CodebookKernels codebook_kernels = {encode4, encode8, decode4, decode8};

}  // namespace quantaria::ops::QUANTARIA_ISA
