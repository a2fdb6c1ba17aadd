#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/storage.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "ops/dequant_matmul/group_order.h"
#include "ops/dequant_matmul/group_order_cuda.h"
#include "ops/moe/moe_cuda.h"
#include "simt/emulator/global_memory.h"
#include "simt_test.h"

// Routing and grouped products, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;
using simt::emulator::GlobalMemory;

/// Device memory that lives as long as a test's call.
class Memory {
 public:
  Memory() { simt::emulator::options().global = memory_.get(); }
  ~Memory() { simt::emulator::options().global = nullptr; }

  template <class T>
  T* room(int64_t count) {
    blocks_.push_back(memory_->allocate(std::max<int64_t>(1, count) * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(blocks_.back().get());
  }
  template <class T>
  T* with(const std::vector<T>& values) {
    T* const to = room<T>(static_cast<int64_t>(values.size()));
    std::copy(values.begin(), values.end(), to);
    return to;
  }
  ops::Allocate allocate() {
    return [this](int64_t bytes) {
      auto block = memory_->allocate(std::max<int64_t>(1, bytes));
      std::byte* const data = block.get();
      return std::make_shared<Storage>(std::move(block), data, bytes, true);
    };
  }
  void require_intact() const { memory_->require_intact(); }

 private:
  std::shared_ptr<GlobalMemory> memory_ = std::make_shared<GlobalMemory>();
  std::vector<std::shared_ptr<std::byte>> blocks_;
};

void put(DType dtype, std::byte* data, int64_t i, float value) {
  if (dtype == DType::float16)
    reinterpret_cast<simt::Half*>(data)[i] = simt::from_float<simt::Half>(value);
  else if (dtype == DType::bfloat16)
    reinterpret_cast<simt::Bfloat16*>(data)[i] = simt::from_float<simt::Bfloat16>(value);
  else
    reinterpret_cast<float*>(data)[i] = value;
}

float get(DType dtype, const std::byte* data, int64_t i) {
  if (dtype == DType::float16) return simt::to_float(reinterpret_cast<const simt::Half*>(data)[i]);
  if (dtype == DType::bfloat16) return simt::to_float(reinterpret_cast<const simt::Bfloat16*>(data)[i]);
  return reinterpret_cast<const float*>(data)[i];
}

/// What an expert's matrices are: dense of the activations' dtype (bits 0), integers, or MX e2m1 (bits 4 and
/// a book), whose values are exact in 16 bits too.
struct Kind {
  int bits = 0;
  bool symmetric = true;
  bool book = false;
  bool stacked = false;  // dense: [in, out] in one piece with the others, else [out, in]
  /// Integers whose columns name their groups: in an order of each expert, and of gate and up if they are
  /// two.
  int orders = 0;
};

/// The columns' groups of 32 each, shuffled.
std::vector<int32_t> shuffled_groups(int64_t columns, int seed) {
  std::vector<int32_t> index;
  for (int64_t k = 0; k < columns; ++k) index.push_back(static_cast<int32_t>(k / 32));
  std::shuffle(index.begin(), index.end(), std::mt19937(static_cast<unsigned>(seed)));
  return index;
}

/// What a matrix is multiplied with, and whether products may round.
struct Left {
  DType dtype;
  bool rounded;
};

/// The weight in the order of its groups where tensor cores take it for such activations.
ops::DeviceWeight in_group_order(Memory& memory, const ops::DeviceWeight& weight,
                                 const std::vector<int32_t>& index, const Left& left) {
  ops::CodedMatrix plain = weight.matrix;
  plain.index = nullptr;
  plain.group = plain.in;
  auto order = std::make_shared<const ops::GroupOrder>(
      ops::order_by_groups(index, (plain.in + weight.matrix.group - 1) / weight.matrix.group));
  if (!ops::on_tensor_cores(left.dtype, plain, left.rounded) || order->columns.empty()) return weight;
  const auto count = static_cast<int64_t>(order->columns.size());
  auto* const words = memory.room<uint32_t>(plain.out * count * plain.bits / 32);
  const int32_t* const columns = memory.with(order->columns);
  ops::order_codes_cuda(nullptr, weight.matrix, columns, count, words);
  return ops::in_group_order(weight, std::move(order), columns, words);
}

struct Expert {
  std::vector<float> gate, up, down;  // [in][out]
};

/// Values [in][out] as a matrix of that kind. They are integers from -1 to 1, and the first row's may be 7.
ops::ExpertMatrix matrix_of(Memory& memory, const Kind& kind, DType dtype, const std::vector<float>& values,
                            int64_t in, int64_t out, const Left& left, int seed) {
  const auto value = [&](int64_t n, int64_t k) { return values[static_cast<size_t>(k * out + n)]; };
  if (kind.bits == 0) {
    auto* const data = memory.room<std::byte>(in * out * size_of(dtype));
    for (int64_t k = 0; k < in; ++k)
      for (int64_t n = 0; n < out; ++n)
        put(dtype, data, kind.stacked ? k * out + n : n * in + k, value(n, k));
    if (kind.stacked) return {{data, dtype, in, out, out, 1}, nullptr};
    return {{data, dtype, in, out, 1, in}, nullptr};
  }
  const int64_t row_bytes = ops::packed_row_bytes(in, kind.bits);
  auto* const packed = memory.room<uint8_t>(out * row_bytes);
  std::memset(packed, 0, static_cast<size_t>(out * row_bytes));
  const int64_t groups = (in + 31) / 32;
  const int32_t zero = kind.symmetric ? 1 << (kind.bits - 1) : kind.bits == 2 ? 1 : 3;
  constexpr uint8_t kE2m1[] = {0, 2, 4, 5, 6};  // of 0 to 4; 7 is not among them
  for (int64_t n = 0; n < out; ++n)
    for (int64_t k = 0; k < in; ++k) {
      const float v = value(n, k);
      const uint32_t code = kind.book ? kE2m1[static_cast<int>(std::abs(v))] | (v < 0 ? 8u : 0u)
                                      : static_cast<uint32_t>(static_cast<int32_t>(v) + zero);
      for (int b = 0; b < kind.bits; ++b) {
        const int64_t bit = k * kind.bits + b;
        if ((code >> b & 1) != 0)
          packed[n * row_bytes + bit / 8] =
              static_cast<uint8_t>(packed[n * row_bytes + bit / 8] | 1u << bit % 8);
      }
    }
  ops::DeviceWeight weight;
  if (kind.book) {
    const std::vector<uint8_t> ones(static_cast<size_t>(out * groups), 127);
    weight = ops::coded_mx({ops::MxElement::e2m1}, packed, memory.with(ones), nullptr, out, in);
  } else {
    ops::IntScheme scheme;
    scheme.bits = kind.bits;
    scheme.symmetric = kind.symmetric;
    scheme.group_size = 32;
    const std::vector<float> ones(static_cast<size_t>(out * groups), 1.0f);
    const std::vector<int32_t> zeros(static_cast<size_t>(out * groups), zero);
    ops::ConstIntStored stored{packed, memory.with(ones), kind.symmetric ? nullptr : memory.with(zeros)};
    const std::vector<int32_t> index = shuffled_groups(in, seed);
    if (kind.orders > 0) stored.group_index = memory.with(index);
    weight = ops::coded_int(scheme, stored, out, in);
    if (kind.orders > 0) weight = in_group_order(memory, weight, index, left);
  }
  return {{}, std::make_shared<const ops::DeviceWeight>(weight)};
}

struct Layer {
  int64_t experts, hidden, inter, top_k;
};

/// Runs a layer of integers, routed by `expert_of(slot)`, whose every step is exact: gates are beyond 18,
/// where silu is the identity in float32, and what lies between the products is a small integer. The result
/// must be the integers' own, rounded to the dtype.
template <class ExpertOf>
bool layer_is_exact(const Kind& kind, DType dtype, const Layer& size, int64_t tokens, ExpertOf expert_of,
                    bool rounded = true) {
  Memory memory;
  const ops::Operand operand = rounded ? ops::Operand::bfloat16 : ops::Operand::float32;
  std::mt19937 random(5);
  const auto [experts, hidden, inter, top_k] = size;
  const auto small = [&] { return static_cast<float>(static_cast<int>(random() % 3)) - 1; };
  const float lead = kind.bits == 2 ? 1.0f : kind.bits == 0 || kind.bits == 8 ? 7.0f : 3.0f;
  std::vector<Expert> all(static_cast<size_t>(experts));
  ops::ExpertMatrices matrices;
  for (Expert& e : all) {
    for (int64_t i = 0; i < hidden * inter; ++i) {
      // The first activation is large and its weight too: the gate is 20 to 24 for whatever comes after.
      e.gate.push_back(i < inter ? lead : i < 4 * inter ? small() : 0);
      e.up.push_back(i < inter ? 0 : i < 6 * inter ? small() : 0);
      e.down.push_back(small());
    }
    const int seed = 3 * static_cast<int>(matrices.gate.size());
    const Left x_side{dtype, rounded};
    const Left between{ops::between_products(dtype, operand), rounded};
    matrices.gate.push_back(matrix_of(memory, kind, dtype, e.gate, hidden, inter, x_side, seed));
    matrices.up.push_back(
        matrix_of(memory, kind, dtype, e.up, hidden, inter, x_side, seed + kind.orders / 2));
    matrices.down.push_back(matrix_of(memory, kind, dtype, e.down, inter, hidden, between, seed + 2));
  }
  const int64_t rows = tokens * top_k;
  std::vector<int32_t> indices;
  std::vector<float> weights;
  for (int64_t slot = 0; slot < rows; ++slot) {
    indices.push_back(static_cast<int32_t>(expert_of(slot)));
    weights.push_back(std::ldexp(random() % 2 ? 1.0f : -1.0f, static_cast<int>(random() % 2)));
  }
  auto* const x = memory.room<std::byte>(tokens * hidden * size_of(dtype));
  std::vector<float> x_values;
  for (int64_t i = 0; i < tokens * hidden; ++i) {
    x_values.push_back(i % hidden == 0 ? 21 / lead : small());
    put(dtype, x, i, x_values.back());
  }
  const ops::SlotOrder order{memory.room<int32_t>(experts), memory.room<int32_t>(experts + 1),
                             memory.room<int32_t>(rows)};
  auto* const verdict = memory.with(std::vector<uint64_t>{0});
  ops::sort_slots_cuda(nullptr, memory.with(indices), rows, experts, order,
                       reinterpret_cast<std::byte*>(verdict),
                       memory.room<std::byte>(ops::slot_sort_workspace(rows, experts)));
  auto* const y = memory.room<std::byte>(tokens * hidden * size_of(dtype));
  ops::experts_cuda(nullptr, {x, dtype, tokens, hidden, hidden, 1},
                    {tokens, top_k, experts, order.order, order.offsets, memory.with(weights)}, matrices,
                    operand, memory.allocate(), {y, dtype, tokens, hidden, hidden, 1});
  memory.require_intact();
  if (*verdict != 0) return false;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> sum(static_cast<size_t>(hidden));
    for (int64_t k = 0; k < top_k; ++k) {
      const auto slot = static_cast<size_t>(t * top_k + k);
      const Expert& e = all[static_cast<size_t>(indices[slot])];
      for (int64_t j = 0; j < inter; ++j) {
        double gate = 0;
        double up = 0;
        for (int64_t i = 0; i < hidden; ++i) {
          const double a = double{x_values[static_cast<size_t>(t * hidden + i)]};
          gate += a * double{e.gate[static_cast<size_t>(i * inter + j)]};
          up += a * double{e.up[static_cast<size_t>(i * inter + j)]};
        }
        if (hidden > 0 && gate < 18) return false;
        for (int64_t h = 0; h < hidden; ++h)
          sum[static_cast<size_t>(h)] +=
              double{weights[slot]} * gate * up * double{e.down[static_cast<size_t>(j * hidden + h)]};
      }
    }
    for (int64_t h = 0; h < hidden; ++h) {
      alignas(4) std::byte expected[4];
      put(dtype, expected, 0, static_cast<float>(sum[static_cast<size_t>(h)]));
      if (get(dtype, expected, 0) == get(dtype, y, t * hidden + h)) continue;  // zeros may differ in sign
      report(__FILE__, __LINE__,
             show(kind.bits) + " bits, " + show(tokens) + " tokens, hidden " + show(hidden) + ", inter " +
                 show(inter) + ": y(" + show(t) + ", " + show(h) + ") is not " +
                 show(sum[static_cast<size_t>(h)]));
      return false;
    }
  }
  return true;
}

// Slots of token t: experts in turn, so that tokens have several; expert 0 has one, expert 1 none.
int64_t uneven(int64_t slot) { return slot == 0 ? 0 : 2 + slot * slot % 3; }

constexpr Kind kKinds[] = {{0},
                           {0, true, false, true},
                           {4},
                           {4, false},
                           {2, false},
                           {3},
                           {8},
                           {8, false},
                           {4, true, true},
                           {4, false, false, false, 1},
                           {3, true, false, false, 2}};
constexpr DType kFloats[] = {DType::float16, DType::bfloat16, DType::float32};

TEST("simt: a layer of experts is exact on small integers, for every kind of weight, dtype and count") {
  int turn = 0;
  for (const Kind& kind : kKinds)
    for (const DType dtype : kFloats) {
      CHECK(layer_is_exact(kind, dtype, {5, 40, 33, 2}, 1 + turn % 17, uneven));
      CHECK(layer_is_exact(kind, dtype, {5, 64, 40, 3}, 31 + turn % 3, uneven, turn % 2 == 0));
      ++turn;
    }
}

TEST("simt: a layer of experts is exact for 1 to 17, 31 to 33 and 63 to 65 tokens, and off every tile") {
  std::vector<int64_t> counts{31, 32, 33, 63, 64, 65};
  for (int64_t t = 1; t <= 17; ++t) counts.push_back(t);
  int turn = 0;
  for (const int64_t tokens : counts) {
    const Kind& kind = kKinds[turn++ % std::size(kKinds)];
    CHECK(layer_is_exact(kind, kFloats[turn % 2], {5, 72, 8, 1}, tokens, uneven));
    CHECK(layer_is_exact(kind, kFloats[turn % 2], {3, 35, 70, 1}, tokens, [](int64_t) { return 2; }));
  }
  for (const int64_t tokens : swept_rows())
    for (const Kind& kind : kKinds)
      for (const DType dtype : kFloats) CHECK(layer_is_exact(kind, dtype, {5, 40, 24, 1}, tokens, uneven));
}

TEST("simt: a layer of experts is exact with 8, 9, 16, 17, 32 and 33 rows an expert, which tiles differ by") {
  int turn = 0;
  for (const Kind& kind : kKinds)
    for (const DType dtype : {DType::float16, DType::bfloat16}) {
      const bool even = ++turn % 4 < 2;
      for (const int64_t tokens : {even ? 40 : 45, even ? 80 : 85, even ? 165 : 160})
        CHECK(layer_is_exact(kind, dtype, {5, 40, 33, 1}, tokens, uneven));
    }
}

bool dense_layer() { return layer_is_exact({0}, DType::float16, {5, 40, 40, 2}, 6, uneven); }
bool dense_rows_layer() {
  return layer_is_exact({0, true, false, true}, DType::bfloat16, {4, 33, 7, 1}, 5, uneven);
}
bool float_layer() { return layer_is_exact({0}, DType::float32, {5, 20, 33, 2}, 6, uneven); }
bool integer_layer() { return layer_is_exact({4, false}, DType::bfloat16, {5, 64, 40, 2}, 6, uneven); }
bool many_rows_layer() {
  return layer_is_exact({3}, DType::float16, {3, 40, 33, 1}, 55, [](int64_t s) { return s % 2 * 2; });
}
bool ordered_layer() {
  return layer_is_exact({4, false, false, false, 1}, DType::bfloat16, {5, 64, 40, 2}, 6, uneven);
}
bool table_layer() { return layer_is_exact({4, true, true}, DType::float16, {5, 40, 33, 1}, 6, uneven); }

TEST("simt: a layer of experts is right in every order of threads and arrivals, and needs each barrier") {
  for (const auto& body : {dense_layer, dense_rows_layer, float_layer, integer_layer, many_rows_layer,
                           ordered_layer, table_layer})
    require_right(__FILE__, __LINE__, every_order(1, 2), body);
  // Those of routing have a test of their own, of more slots.
  require_each_sync(__FILE__, __LINE__, {dense_layer, float_layer, integer_layer, table_layer},
                    every_order(1), {"gemm_cuda", "fma_product", "coded_product"});
}

/// Routes random logits with ties and holds choice, weights and slots against plain code.
struct Groups {
  int64_t count = 1;
  int64_t top = 1;
};

/// Where the experts of a token's best groups stand in `row`, as plain code finds them.
std::vector<bool> experts_in_best(const float* row, int64_t experts, const Groups& groups) {
  const int64_t size = experts / groups.count;
  std::vector<int64_t> order(static_cast<size_t>(groups.count));
  for (size_t g = 0; g < order.size(); ++g) order[g] = static_cast<int64_t>(g);
  const auto best = [&](int64_t g) { return *std::max_element(row + g * size, row + (g + 1) * size); };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return best(a) > best(b); });
  std::vector<bool> in(static_cast<size_t>(experts));
  for (int64_t g = 0; g < groups.top; ++g)
    std::fill_n(in.begin() + order[static_cast<size_t>(g)] * size, size, true);
  return in;
}

bool routing_is_right(int64_t tokens, int64_t experts, int64_t top_k, bool softmax_first,
                      const Groups& groups = {}) {
  Memory memory;
  std::mt19937 random(11);
  std::vector<float> logits;
  for (int64_t i = 0; i < tokens * experts; ++i)
    logits.push_back(static_cast<float>(static_cast<int>(random() % 64)) / 16 - 2);
  const int64_t slots = tokens * top_k;
  const ops::SlotOrder order{memory.room<int32_t>(experts), memory.room<int32_t>(experts + 1),
                             memory.room<int32_t>(slots)};
  auto* const indices = memory.room<int32_t>(slots);
  auto* const weights = memory.room<float>(slots);
  ops::RouteOptions options;
  options.top_k = top_k;
  options.softmax_first = softmax_first;
  options.groups = groups.count;
  options.top_groups = groups.top;
  ops::route_cuda(
      nullptr,
      {reinterpret_cast<std::byte*>(memory.with(logits)), DType::float32, tokens, experts, experts, 1},
      options, indices, weights, order, memory.room<std::byte>(ops::slot_sort_workspace(slots, experts)));
  memory.require_intact();
  std::vector<std::vector<int32_t>> of(static_cast<size_t>(experts));
  for (int64_t t = 0; t < tokens; ++t) {
    const float* const row = logits.data() + t * experts;
    std::vector<int32_t> best(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) best[static_cast<size_t>(e)] = static_cast<int32_t>(e);
    const std::vector<bool> in = experts_in_best(row, experts, groups);
    std::stable_sort(best.begin(), best.end(), [&](int32_t a, int32_t b) {
      const bool a_in = in[static_cast<size_t>(a)];
      return a_in != in[static_cast<size_t>(b)] ? a_in : row[a] > row[b];
    });
    double sum = 0;
    for (int64_t e = 0; e < (softmax_first ? experts : top_k); ++e)
      sum += std::exp(double{row[best[static_cast<size_t>(e)]]});
    for (int64_t k = 0; k < top_k; ++k) {
      const int32_t e = best[static_cast<size_t>(k)];
      if (indices[t * top_k + k] != e) return false;
      const double wanted = std::exp(double{row[e]}) / sum;
      if (!(std::abs(double{weights[t * top_k + k]} - wanted) <= 0x1p-23 * wanted)) return false;
      of[static_cast<size_t>(e)].push_back(static_cast<int32_t>(t * top_k + k));
    }
  }
  int32_t place = 0;
  for (size_t e = 0; e < of.size(); ++e) {
    if (order.offsets[e] != place || order.counts[e] != static_cast<int32_t>(of[e].size())) return false;
    for (const int32_t slot : of[e])
      if (order.order[place++] != slot) return false;
  }
  return order.offsets[experts] == place;
}

TEST("simt: routing chooses, weighs and sorts like plain code, in one chunk of slots and in several") {
  for (const bool softmax_first : {false, true}) {
    CHECK(routing_is_right(0, 3, 2, softmax_first));
    CHECK(routing_is_right(1, 1, 1, softmax_first));
    CHECK(routing_is_right(9, 40, 6, softmax_first));
    CHECK(routing_is_right(5, 33, 33, softmax_first));
    CHECK(routing_is_right(128, 4, 4, softmax_first));
    CHECK(routing_is_right(129, 300, 4, softmax_first));
    CHECK(routing_is_right(700, 7, 2, softmax_first));
    CHECK(routing_is_right(33, 12, 3, softmax_first, {4, 1}));
    CHECK(routing_is_right(9, 160, 6, softmax_first, {8, 3}));
    CHECK(routing_is_right(5, 64, 5, softmax_first, {64, 63}));
  }
}

bool one_chunk() { return routing_is_right(6, 40, 3, true); }
bool of_groups() { return routing_is_right(6, 40, 3, true, {5, 2}); }
bool three_chunks() { return routing_is_right(345, 40, 3, false); }

TEST("simt: routing is right in every order of threads, and needs each barrier") {
  for (const auto& body : {one_chunk, of_groups, three_chunks})
    require_right(__FILE__, __LINE__, every_order(1, 2), body);
  require_each_sync(__FILE__, __LINE__, {one_chunk, of_groups, three_chunks}, every_order(3), {"route_cuda"});
}

TEST("simt: an index or a count that is out of range is told, and writes nothing beside its tensors") {
  Memory memory;
  auto* const verdict = memory.with(std::vector<uint64_t>{0});
  const ops::SlotOrder order{memory.room<int32_t>(3), memory.room<int32_t>(4), memory.room<int32_t>(4)};
  ops::sort_slots_cuda(nullptr, memory.with(std::vector<int32_t>{0, 3, -1, 2}), 4, 3, order,
                       reinterpret_cast<std::byte*>(verdict), nullptr);
  CHECK_EQ(*verdict, ~uint64_t{1});
  for (const std::vector<int32_t>& counts :
       {std::vector<int32_t>{1, -1, 3}, {2, 2, 0}, {9, 9, 9}, {1, 1, 0}}) {
    *verdict = 0;
    std::vector<ops::ExpertMatrix> factors(
        3,
        matrix_of(memory, {}, DType::float16, std::vector<float>(16, 1.0f), 4, 4, {DType::float16, true}, 0));
    auto* const x = memory.room<std::byte>(3 * 4 * 2);
    auto* const y = memory.room<std::byte>(3 * 4 * 2);
    ops::grouped_matmul_cuda(nullptr, {x, DType::float16, 3, 4, 4, 1}, memory.with(counts), factors,
                             ops::Operand::bfloat16, reinterpret_cast<std::byte*>(verdict), memory.allocate(),
                             {y, DType::float16, 3, 4, 4, 1});
    CHECK_EQ(*verdict, ~uint64_t{0});
  }
  memory.require_intact();
}

}  // namespace
