#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "core/storage.h"
#include "ops/bitpack/bitpack.h"
#include "ops/moe/moe_cuda.h"
#include "simt_room.h"

// Layers of experts whose activations are quantized to int8 too, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

/// How a matrix is quantized: integers with a scale for each group of columns.
struct Kind {
  int bits;
  bool symmetric;
  int64_t group;
};

struct Matrix8 {
  Kind kind;
  int64_t out, in, groups;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> zeros;

  Matrix8(const Kind& how, int64_t rows, int64_t cols, std::mt19937& random)
      : kind(how), out(rows), in(cols), groups((cols + how.group - 1) / how.group) {
    for (int64_t i = 0; i < out * in; ++i)
      codes.push_back(static_cast<uint8_t>(random() % (1u << kind.bits)));
    for (int64_t i = 0; i < out * groups; ++i) {
      scales.push_back(std::ldexp(1.0f + static_cast<float>(random() % 256) / 256, -1 - kind.bits));
      if (!kind.symmetric) zeros.push_back(static_cast<int32_t>(random() % (1u << kind.bits)));
    }
  }

  ops::ExpertMatrix in_device(DeviceRoom& room) const {
    std::vector<uint8_t> packed(static_cast<size_t>(out * ops::packed_row_bytes(in, kind.bits)));
    ThreadPool serial(1);
    ops::pack_bits(serial, {reinterpret_cast<const std::byte*>(codes.data()), DType::uint8, out, in, in, 1},
                   kind.bits, 0, packed.data());
    ops::IntScheme scheme;
    scheme.bits = kind.bits;
    scheme.symmetric = kind.symmetric;
    scheme.group_size = kind.group;
    return {{},
            std::make_shared<const ops::DeviceWeight>(ops::coded_int(
                scheme, {room.copy(packed), room.copy(scales), kind.symmetric ? nullptr : room.copy(zeros)},
                out, in))};
  }

  /// y = W x as the contract says: x quantized over each group, sums of a group exact, their terms in float32
  /// in the order of groups.
  std::vector<float> times(const std::vector<float>& x) const {
    std::vector<float> y(static_cast<size_t>(out));
    const int offset = kind.symmetric ? 1 << (kind.bits - 1) : 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * kind.group;
      const int64_t end = std::min(in, begin + kind.group);
      float most = 0;
      for (int64_t k = begin; k < end; ++k) most = std::max(most, std::abs(x[static_cast<size_t>(k)]));
      const float factor = most > 0 ? 127.0f / most : 0.0f;
      for (int64_t n = 0; n < out; ++n) {
        int64_t sum = 0;
        int64_t of_row = 0;
        for (int64_t k = begin; k < end; ++k) {
          const auto code = static_cast<int64_t>(std::nearbyint(x[static_cast<size_t>(k)] * factor));
          sum += code * (codes[static_cast<size_t>(n * in + k)] - offset);
          of_row += code;
        }
        const auto at = static_cast<size_t>(n * groups + g);
        float plain = static_cast<float>(sum);
        if (!kind.symmetric)
          plain = std::fma(-static_cast<float>(zeros[at]), static_cast<float>(of_row), plain);
        float& total = y[static_cast<size_t>(n)];
        total = std::fma(plain * (most / 127.0f), scales[at], total);
      }
    }
    return y;
  }
};

struct Expert {
  Matrix8 gate, up, down;
};

struct Layer {
  int64_t experts, hidden, inter, top_k;
};

/// Of each expert in turn: gate, up, down.
using Kinds = std::vector<std::array<Kind, 3>>;

template <class T>
float put(std::byte* data, int64_t i, float value) {
  auto* const to = reinterpret_cast<T*>(data) + i;
  *to = simt::from_float<T>(value);
  return simt::to_float(*to);
}

float put(DType dtype, std::byte* data, int64_t i, float value) {
  if (dtype == DType::float16) return put<simt::Half>(data, i, value);
  if (dtype == DType::bfloat16) return put<simt::Bfloat16>(data, i, value);
  return put<float>(data, i, value);
}

/// Every bit of a layer's result, by float32 steps in the order of the contract.
template <class ExpertOf>
bool layer_is_right(const Kinds& kinds, DType dtype, const Layer& size, int64_t tokens, ExpertOf expert_of) {
  DeviceRoom room;
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  const auto [count, hidden, inter, top_k] = size;
  std::vector<Expert> experts;
  ops::ExpertMatrices matrices;
  for (int64_t e = 0; e < count; ++e) {
    const auto& kind = kinds[static_cast<size_t>(e) % kinds.size()];
    experts.push_back({{kind[0], inter, hidden, random},
                       {kind[1], inter, hidden, random},
                       {kind[2], hidden, inter, random}});
    matrices.gate.push_back(experts.back().gate.in_device(room));
    matrices.up.push_back(experts.back().up.in_device(room));
    matrices.down.push_back(experts.back().down.in_device(room));
  }
  const int64_t slots = tokens * top_k;
  std::vector<int32_t> indices;
  std::vector<float> weights;
  for (int64_t slot = 0; slot < slots; ++slot) {
    indices.push_back(static_cast<int32_t>(expert_of(slot)));
    weights.push_back(normal(random));
  }
  auto* const x = room.take<std::byte>(tokens * hidden * size_of(dtype));
  std::vector<std::vector<float>> x_rows(static_cast<size_t>(tokens));
  for (int64_t i = 0; i < tokens * hidden; ++i)
    x_rows[static_cast<size_t>(i / hidden)].push_back(put(dtype, x, i, normal(random)));
  const ops::SlotOrder order{room.take<int32_t>(count), room.take<int32_t>(count + 1),
                             room.take<int32_t>(slots)};
  auto* const verdict = room.zeros(8);
  auto* const y = room.take<float>(tokens * hidden);
  room.run([&] {
    ops::sort_slots_cuda(nullptr, room.copy(indices), slots, count, order, verdict,
                         room.take<std::byte>(ops::slot_sort_workspace(slots, count)));
    ops::experts_cuda(nullptr, {x, dtype, tokens, hidden, hidden, 1},
                      {tokens, top_k, count, order.order, order.offsets, room.copy(weights)}, matrices,
                      ops::Operand::int8,
                      [&](int64_t bytes) {
                        return std::make_shared<Storage>(nullptr, room.take<std::byte>(bytes), bytes, true);
                      },
                      {reinterpret_cast<std::byte*>(y), DType::float32, tokens, hidden, hidden, 1});
  });
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<float> expected(static_cast<size_t>(hidden));
    for (int64_t k = 0; k < top_k; ++k) {
      const auto slot = static_cast<size_t>(t * top_k + k);
      const Expert& expert = experts[static_cast<size_t>(indices[slot])];
      std::vector<float> activated = expert.gate.times(x_rows[static_cast<size_t>(t)]);
      const std::vector<float> up = expert.up.times(x_rows[static_cast<size_t>(t)]);
      for (size_t i = 0; i < activated.size(); ++i)
        activated[i] = activated[i] / (1.0f + std::exp(std::clamp(-activated[i], -87.0f, 88.0f))) * up[i];
      const std::vector<float> result = expert.down.times(activated);
      for (size_t h = 0; h < result.size(); ++h)
        expected[h] = k == 0 ? result[h] * weights[slot] : std::fma(result[h], weights[slot], expected[h]);
    }
    for (int64_t h = 0; h < hidden; ++h) {
      if (y[t * hidden + h] == expected[static_cast<size_t>(h)]) continue;
      report(__FILE__, __LINE__,
             show(tokens) + " tokens, hidden " + show(hidden) + ", inter " + show(inter) + ": y(" + show(t) +
                 ", " + show(h) + ") is " + show(y[t * hidden + h]) + ", expected " +
                 show(expected[static_cast<size_t>(h)]));
      return false;
    }
  }
  return true;
}

// Slots of token t: experts in turn, so that tokens have several; expert 0 has one, expert 1 none.
int64_t uneven(int64_t slot) { return slot == 0 ? 0 : 2 + slot * slot % 3; }

constexpr Kind kInt4{4, true, 32}, kInt4Zeros{4, false, 64}, kInt8{8, true, 32}, kRow8{8, true, 128},
    kStep4{4, false, 128}, kInt3{3, false, 32}, kInt5{5, true, 32}, kInt4Short{4, true, 24};

const Kinds kAlike[] = {{{kInt4, kInt4, kInt4}},
                        {{kInt4Zeros, kInt4Zeros, kInt8}},
                        {{kRow8, kRow8, kRow8}},
                        {{kInt3, kInt3, kInt4Short}},
                        {{kInt8, kInt8, kInt4}}};
const Kinds kMixed[] = {{{kInt4, kInt8, kInt3}},
                        {{kInt4, kInt4, kInt8}, {kInt8, kInt8, kInt4}},
                        {{kInt5, kInt5, kRow8}, {kInt4, kInt3, kInt4}}};
constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};

TEST("simt: int8 experts are right to the bit, of every width and mixture, for 1 to 17 tokens and more") {
  std::vector<int64_t> counts{31, 32, 33, 63, 64, 65, 127, 128, 129};
  for (int64_t t = 1; t <= 17; ++t) counts.push_back(t);
  int turn = 0;
  for (const int64_t tokens : thinned(counts, 3)) {
    const DType dtype = kFloats[turn % 3];
    CHECK(layer_is_right(kAlike[turn % 5], dtype, {5, 40, 33, 1}, tokens, uneven));
    if (tokens <= 17) {
      CHECK(layer_is_right(kAlike[turn % 5], dtype, {5, 96, 72, 3}, tokens, uneven));
      CHECK(layer_is_right(kMixed[turn % 3], dtype, {5, 72, 24, 2}, tokens, uneven));
    }
    ++turn;
  }
}

TEST("simt: int8 experts are right to the bit where groups are as long as a tile's steps") {
  const Kinds by_step{{kStep4, kStep4, kRow8}};
  for (const int64_t tokens : {3, 17, 66}) {
    CHECK(layer_is_right(by_step, DType::bfloat16, {4, 160, 136, 1}, tokens, uneven));
    CHECK(layer_is_right({{kRow8, kRow8, kStep4}}, DType::float16, {4, 136, 192, 2}, tokens, uneven));
  }
}

TEST("simt: int8 experts take a layer without inner columns and one whose tokens all go to one expert") {
  CHECK(layer_is_right(kAlike[0], DType::float32, {5, 32, 0, 2}, 3, uneven));
  for (const Kinds& kinds : kAlike)
    CHECK(layer_is_right(kinds, DType::bfloat16, {3, 33, 130, 1}, 70, [](int64_t) { return 2; }));
}

bool few_rows() { return layer_is_right(kAlike[1], DType::bfloat16, {5, 72, 40, 2}, 5, uneven); }
bool many_rows() {
  return layer_is_right(kAlike[0], DType::float16, {3, 40, 33, 1}, 55, [](int64_t s) { return s % 2 * 2; });
}
bool mixed() { return layer_is_right(kMixed[2], DType::float32, {5, 40, 24, 2}, 4, uneven); }

TEST("simt: int8 experts are right in every order of threads and arrivals, and need each barrier and wait") {
  require_right(__FILE__, __LINE__, every_order(1, 2), mixed);
  require_each_sync(__FILE__, __LINE__, {few_rows, many_rows}, every_order(1, 2), {"int8_"});
}

}  // namespace
