// Compiled without the thread sanitizer, like machine.cc: operands are registers.
#include "simt/emulator/fragments.h"

#include <cstdint>
#include <vector>

#include "numerics/bfloat16.h"
#include "numerics/half.h"

namespace quantaria::simt::emulator {
namespace {

using Lanes = Operands* const[kWarpSize];

struct Row {
  uint32_t words[4];

  uint16_t element(unsigned i) const { return static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2)); }
};

/// Four registers of a and two of b as 16 x K and K x 8 matrices (b by columns); PerWord elements in each
/// register.
template <unsigned PerWord, class Value, class Decode>
struct Tiles {
  static constexpr unsigned kK = 8 * PerWord;
  Value a[16][kK];
  Value b[8][kK];

  Tiles(const Lanes& lanes, Decode decode) {
    constexpr unsigned kBits = 32 / PerWord;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      const auto* const ra = static_cast<const uint32_t*>(lanes[lane]->in0);
      const auto* const rb = static_cast<const uint32_t*>(lanes[lane]->in1);
      const unsigned row = lane / 4;
      for (unsigned i = 0; i < PerWord; ++i) {
        const unsigned k = lane % 4 * PerWord + i;
        a[row][k] = decode(ra[0] >> kBits * i);
        a[row + 8][k] = decode(ra[1] >> kBits * i);
        a[row][k + kK / 2] = decode(ra[2] >> kBits * i);
        a[row + 8][k + kK / 2] = decode(ra[3] >> kBits * i);
        b[row][k] = decode(rb[0] >> kBits * i);
        b[row][k + kK / 2] = decode(rb[1] >> kBits * i);
      }
    }
  }
};

template <class Decode>
void mma_float(const Lanes& lanes, Decode decode) {
  const Tiles<2, float, Decode> tiles(lanes, decode);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto* const d = static_cast<float*>(lanes[lane]->out);
    for (unsigned i = 0; i < 4; ++i) {
      const float* const a = tiles.a[lane / 4 + i / 2 * 8];
      const float* const b = tiles.b[lane % 4 * 2 + i % 2];
      double sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += double{a[k]} * double{b[k]};
      d[i] = static_cast<float>(double{d[i]} + sum);
    }
  }
}

/// Decoding by numerics costs too much for a product's inner loop.
const float* half_values() {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (uint32_t i = 0; i < values.size(); ++i)
      values[i] = numerics::float_from_half(static_cast<uint16_t>(i));
    return values;
  }();
  return table.data();
}

void load(const Lanes& lanes, bool transposed) {
  const auto matrices = static_cast<unsigned>(lanes[0]->value);
  for (unsigned m = 0; m < matrices; ++m) {
    // Eight rows of 16 bytes are read at once; two in the same eighth of the 128-byte line of banks take two
    // turns.
    uint32_t seen = 0;
    for (unsigned r = 0; r < 8; ++r) {
      const uint32_t bank = 1u << (reinterpret_cast<uintptr_t>(lanes[m * 8 + r]->in1) / 16 % 8);
      if ((seen & bank) != 0) ++machine().counts().bank_conflicts;
      seen |= bank;
    }
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto* const out = static_cast<uint32_t*>(lanes[lane]->out);
    for (unsigned m = 0; m < matrices; ++m) {
      const auto element = [&](unsigned r, unsigned c) {
        return uint32_t{static_cast<const Row*>(lanes[m * 8 + r]->in0)->element(c)};
      };
      const unsigned row = lane / 4;
      const unsigned col = lane % 4 * 2;
      out[m] = transposed ? element(col, row) | element(col + 1, row) << 16
                          : element(row, col) | element(row, col + 1) << 16;
    }
  }
}

}  // namespace

void mma_half(uint32_t, Lanes& lanes, const Site&) {
  const float* const values = half_values();
  mma_float(lanes, [values](uint32_t word) { return values[word & 0xffffu]; });
}

void mma_bfloat16(uint32_t, Lanes& lanes, const Site&) {
  mma_float(lanes, [](uint32_t word) { return numerics::float_from_bfloat16(static_cast<uint16_t>(word)); });
}

void mma_int8(uint32_t, Lanes& lanes, const Site&) {
  const auto decode = [](uint32_t word) { return int32_t{static_cast<int8_t>(word)}; };
  const Tiles<4, int32_t, decltype(decode)> tiles(lanes, decode);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    auto* const d = static_cast<int32_t*>(lanes[lane]->out);
    for (unsigned i = 0; i < 4; ++i) {
      auto sum = static_cast<uint32_t>(d[i]);
      for (unsigned k = 0; k < 32; ++k)
        sum += static_cast<uint32_t>(tiles.a[lane / 4 + i / 2 * 8][k] * tiles.b[lane % 4 * 2 + i % 2][k]);
      d[i] = static_cast<int32_t>(sum);
    }
  }
}

void load_matrix(uint32_t, Lanes& lanes, const Site&) { load(lanes, false); }
void load_matrix_transposed(uint32_t, Lanes& lanes, const Site&) { load(lanes, true); }

void shuffle(uint32_t mask, Lanes& lanes, const Site& site) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const auto source = static_cast<unsigned>(lanes[lane]->value);
    if ((mask >> source & 1) == 0) fault("a shuffle from a lane outside of its mask", site);
    *static_cast<uint64_t*>(lanes[lane]->out) = *static_cast<const uint64_t*>(lanes[source]->in0);
  }
}

void ballot(uint32_t mask, Lanes& lanes, const Site&) {
  uint32_t votes = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if ((mask >> lane & 1) != 0 && lanes[lane]->value != 0) votes |= 1u << lane;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if ((mask >> lane & 1) != 0) *static_cast<uint32_t*>(lanes[lane]->out) = votes;
}

}  // namespace quantaria::simt::emulator
