#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "ops/decoder/decoder_cuda.h"
#include "simt/emulator/global_memory.h"
#include "simt_test.h"

// What a decoder does between its products, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

/// Matrices in device memory, with their values.
class Memory {
 public:
  Memory() { simt::emulator::options().global = memory_.get(); }
  ~Memory() {
    simt::emulator::options().global = nullptr;
    memory_->require_intact();
  }

  std::byte* room(int64_t bytes) {
    blocks_.push_back(memory_->allocate(std::max<int64_t>(1, bytes)));
    return blocks_.back().get();
  }
  template <class T>
  T* with(const std::vector<T>& values) {
    auto* const to = reinterpret_cast<T*>(room(static_cast<int64_t>(values.size() * sizeof(T))));
    std::copy(values.begin(), values.end(), to);
    return to;
  }
  Matrix matrix(DType dtype, int64_t rows, int64_t cols) {
    return {room(rows * cols * size_of(dtype)), dtype, rows, cols, cols, 1};
  }
  /// Of normal values.
  Matrix normal(DType dtype, int64_t rows, int64_t cols, float scale = 1) {
    const Matrix made = matrix(dtype, rows, cols);
    std::normal_distribution<float> distribution;
    for (int64_t i = 0; i < rows * cols; ++i) put(made, i, scale * distribution(random_));
    return made;
  }

  static void put(const Matrix& m, int64_t i, float value) {
    if (m.dtype == DType::float16)
      reinterpret_cast<simt::Half*>(m.data)[i] = simt::from_float<simt::Half>(value);
    else if (m.dtype == DType::bfloat16)
      reinterpret_cast<simt::Bfloat16*>(m.data)[i] = simt::from_float<simt::Bfloat16>(value);
    else
      reinterpret_cast<float*>(m.data)[i] = value;
  }

 private:
  std::shared_ptr<simt::emulator::GlobalMemory> memory_ = std::make_shared<simt::emulator::GlobalMemory>();
  std::vector<std::shared_ptr<std::byte>> blocks_;
  std::mt19937 random_{3};
};

double get(const ConstMatrix& m, int64_t row, int64_t col) {
  const int64_t i = row * m.row_stride + col * m.col_stride;
  if (m.dtype == DType::float16)
    return double{simt::to_float(reinterpret_cast<const simt::Half*>(m.data)[i])};
  if (m.dtype == DType::bfloat16)
    return double{simt::to_float(reinterpret_cast<const simt::Bfloat16*>(m.data)[i])};
  return double{reinterpret_cast<const float*>(m.data)[i]};
}

/// Half a unit in the last place of 1.
double unit(DType dtype) {
  return dtype == DType::float32 ? 0x1p-24 : dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
}

/// Whether y(row, col) is `wanted` within `slack` and one rounding to y's dtype.
bool near(const char* what, const Matrix& y, int64_t row, int64_t col, double wanted, double slack) {
  const double got = get(y, row, col);
  if (std::abs(got - wanted) <= slack + unit(y.dtype) * (std::abs(wanted) + slack) + 0x1p-25) return true;
  report(__FILE__, __LINE__,
         std::string(what) + ": (" + show(row) + ", " + show(col) + ") is " + show(got) + ", expected " +
             show(wanted));
  return false;
}

constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};

bool norm_is_right(DType dtype, DType gain_dtype, int64_t rows, int64_t cols) {
  Memory memory;
  const Matrix x = memory.normal(dtype, rows, cols);
  const Matrix gain = memory.normal(gain_dtype, 1, cols);
  const Matrix y = memory.matrix(dtype, rows, cols);
  ops::rms_norm_cuda(nullptr, x, gain, 1e-5f, y);
  for (int64_t t = 0; t < rows; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < cols; ++i) squares += get(x, t, i) * get(x, t, i);
    const double factor = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
    for (int64_t i = 0; i < cols; ++i) {
      const double wanted = get(gain, 0, i) * get(x, t, i) * factor;
      if (!near("norm", y, t, i, wanted, 4 * 0x1p-24 * std::abs(wanted))) return false;
    }
  }
  return true;
}

bool rotation_is_right(DType dtype, const ops::Rotary& rotary, int64_t rows) {
  Memory memory;
  const int64_t pairs = rotary.dims / 2;
  const Matrix x = memory.normal(dtype, rows, rotary.heads * rotary.head_dim);
  const Matrix y = memory.matrix(dtype, rows, rotary.heads * rotary.head_dim);
  std::vector<float> cosines;
  std::vector<float> sines;
  for (int64_t i = 0; i < (rotary.first + rotary.sequence) * pairs; ++i) {
    cosines.push_back(std::cos(static_cast<float>(i)));
    sines.push_back(std::sin(static_cast<float>(i)));
  }
  ops::rotate_cuda(nullptr, x, memory.with(cosines), memory.with(sines), rotary, y);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t head = 0; head < rotary.heads; ++head)
      for (int64_t i = 0; i < rotary.head_dim; ++i) {
        const int64_t turned = i - rotary.offset;
        const int64_t start = head * rotary.head_dim;
        double wanted = get(x, t, start + i);
        double slack = 0;
        if (turned >= 0 && turned < rotary.dims) {
          const int64_t pair = rotary.interleaved ? turned / 2 : turned % pairs;
          const bool second = rotary.interleaved ? turned % 2 == 1 : turned >= pairs;
          const int64_t apart = rotary.interleaved ? 1 : pairs;
          const auto angle = static_cast<size_t>((rotary.first + t % rotary.sequence) * pairs + pair);
          const double other = get(x, t, start + i + (second ? -apart : apart));
          const double turn = double{sines[angle]} * (second ? other : -other);
          slack = 2 * 0x1p-24 * (std::abs(wanted) + std::abs(turn));
          wanted = wanted * double{cosines[angle]} + turn;
        }
        if (!near("rotation", y, t, start + i, wanted, slack)) return false;
      }
  return true;
}

/// Scores are rounded by some eps sqrt(key_dim) of their magnitudes, which their exponentials take over.
bool attention_is_right(DType dtype, const ops::Attention& a) {
  Memory memory;
  const Matrix q = memory.normal(dtype, a.sequences * a.queries, a.heads * a.key_dim);
  const Matrix k = memory.normal(dtype, a.sequences * a.keys, a.kv_heads * a.key_dim);
  const Matrix v = memory.normal(dtype, a.sequences * a.keys, a.kv_heads * a.value_dim);
  const Matrix y = memory.matrix(dtype, a.sequences * a.queries, a.heads * a.value_dim);
  ops::attend_cuda(nullptr, q, k, v, a, y);
  for (int64_t s = 0; s < a.sequences; ++s)
    for (int64_t i = 0; i < a.queries; ++i)
      for (int64_t head = 0; head < a.heads; ++head) {
        const int64_t kv = head * a.kv_heads / a.heads;
        const int64_t position = a.keys - a.queries + i;
        const int64_t from = a.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - a.window);
        std::vector<double> share;
        double largest = -1e300;
        double moved = 0;  // of any score
        for (int64_t j = from; j <= position; ++j) {
          double score = 0;
          double magnitude = 0;
          for (int64_t d = 0; d < a.key_dim; ++d) {
            const double term = get(q, s * a.queries + i, head * a.key_dim + d) *
                                get(k, s * a.keys + j, kv * a.key_dim + d) * double{a.scale};
            score += term;
            magnitude += std::abs(term);
          }
          share.push_back(score);
          largest = std::max(largest, score);
          moved = std::max(moved, 4 * 0x1p-24 * std::sqrt(static_cast<double>(a.key_dim) + 1) * magnitude);
        }
        double total = 0;
        for (double& x : share) total += x = std::exp(x - largest);
        for (int64_t c = 0; c < a.value_dim; ++c) {
          double wanted = 0;
          double magnitude = 0;
          for (size_t j = 0; j < share.size(); ++j) {
            const double term =
                share[j] / total * get(v, s * a.keys + from + static_cast<int64_t>(j), kv * a.value_dim + c);
            wanted += term;
            magnitude += std::abs(term);
          }
          const double rounding = 8 * 0x1p-24 * std::sqrt(static_cast<double>(share.size()) + 1);
          if (!near("attention", y, s * a.queries + i, head * a.value_dim + c, wanted,
                    (2 * moved + rounding) * magnitude))
            return false;
        }
      }
  return true;
}

bool scores_are_right(int64_t rows, int64_t vocabulary, bool with_baseline) {
  Memory memory;
  const Matrix logits = memory.normal(DType::float32, rows, vocabulary, 3);
  const Matrix baseline = memory.normal(DType::float32, rows, vocabulary, 3);
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < rows; ++t) targets.push_back(static_cast<int32_t>(t * 7 % vocabulary));
  for (int64_t i = 0; i < vocabulary; ++i) {  // the same largest one, twice
    Memory::put(logits, i, i == 3 || i == 5 ? 40 : 1);
    Memory::put(baseline, i, i == 3 ? 40 : 1);
  }
  auto* const verdict = memory.with(std::vector<uint64_t>{0});
  auto* const scores = reinterpret_cast<ops::TokenScore*>(memory.room(rows * 20));
  const auto* const other = reinterpret_cast<const float*>(baseline.data);
  ops::score_tokens_cuda(nullptr, reinterpret_cast<const float*>(logits.data),
                         with_baseline ? other : nullptr, rows, vocabulary, memory.with(targets),
                         reinterpret_cast<std::byte*>(verdict), scores);
  if (*verdict != 0) return false;
  const auto close = [](float got, double wanted) {
    return std::abs(double{got} - wanted) <= 0x1p-18 * (std::abs(wanted) + 1);
  };
  for (int64_t t = 0; t < rows; ++t) {
    const auto softmax = [&](const Matrix& m) {
      double largest = -1e300;
      for (int64_t i = 0; i < vocabulary; ++i) largest = std::max(largest, get(m, t, i));
      double sum = 0;
      for (int64_t i = 0; i < vocabulary; ++i) sum += std::exp(get(m, t, i) - largest);
      return largest + std::log(sum);
    };
    const double log_sum = softmax(logits);
    if (!close(scores[t].loss, log_sum - get(logits, t, targets[static_cast<size_t>(t)]))) return false;
    double divergence = 0;
    double error = 0;
    double reference = 0;
    int64_t best[2] = {0, 0};
    const double other_sum = softmax(baseline);
    for (int64_t i = 0; i < vocabulary; ++i) {
      const double a = get(logits, t, i);
      const double b = get(baseline, t, i);
      divergence += std::exp(b - other_sum) * ((b - other_sum) - (a - log_sum));
      error += (a - b) * (a - b);
      reference += b * b;
      if (a > get(logits, t, best[0])) best[0] = i;
      if (b > get(baseline, t, best[1])) best[1] = i;
    }
    if (!with_baseline) divergence = error = reference = 0;
    const float agree = with_baseline && best[0] == best[1] ? 1.0f : 0.0f;
    if (!close(scores[t].divergence, divergence) || !close(scores[t].error, error) ||
        !close(scores[t].reference, reference) || scores[t].agree != agree)
      return false;
  }
  return true;
}

TEST("simt: RMSNorm is within some roundings of float64, whatever the row") {
  for (const DType dtype : kFloats)
    for (const int64_t cols : {1, 7, 255, 256, 1000}) {
      CHECK(norm_is_right(dtype, DType::float32, 3, cols));
      CHECK(norm_is_right(dtype, dtype, 1, cols));
    }
}

TEST("simt: rotary embedding turns both kinds of pairs, and leaves the rest of a head") {
  for (const DType dtype : kFloats)
    for (const bool interleaved : {false, true}) {
      CHECK(rotation_is_right(dtype, {3, 10, 0, 10, interleaved, 4, 2}, 9));
      CHECK(rotation_is_right(dtype, {2, 12, 3, 6, interleaved, 8, 0}, 5));
    }
}

TEST("simt: attention is within the bound of float64: heads in groups, windows, caches and any extent") {
  int turn = 0;
  for (const ops::Attention& a : {ops::Attention{1, 1, 1, 1, 1, 1, 1, 1.0f, 0},
                                  {2, 17, 17, 4, 2, 16, 16, 0.25f, 0},
                                  {1, 3, 70, 2, 1, 65, 40, 0.1f, 0},
                                  {2, 40, 40, 2, 2, 8, 12, 0.5f, 7},
                                  {1, 33, 50, 3, 1, 70, 130, 0.1f, 33},
                                  {1, 70, 70, 1, 1, 4, 4, 2.0f, 64}}) {
    CHECK(attention_is_right(kFloats[turn++ % 3], a));
    CHECK(attention_is_right(DType::float32, a));
  }
}

TEST("simt: an infinite or NaN key or value reaches only the queries that see it") {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
    for (const bool in_values : {false, true}) {
      Memory memory;
      const ops::Attention a{1, 20, 20, 1, 1, 8, 8, 0.3f, 0};
      const Matrix q = memory.normal(DType::float32, 20, 8);
      const Matrix k = memory.normal(DType::float32, 20, 8);
      const Matrix v = memory.normal(DType::float32, 20, 8);
      const Matrix y = memory.matrix(DType::float32, 20, 8);
      Memory::put(in_values ? v : k, 11 * 8 + 3, bad);
      ops::attend_cuda(nullptr, q, k, v, a, y);
      for (int64_t t = 0; t < 20; ++t)
        for (int64_t c = 0; c < 8; ++c) {
          const bool reached = t >= 11 && (!in_values || c == 3);
          // A key's infinity times a negative query is minus infinity: no share at all.
          if (!reached || std::isnan(bad) || in_values) CHECK_EQ(std::isfinite(get(y, t, c)), !reached);
        }
    }
}

TEST("simt: scores of tokens are those of float64 to some 2^-18, the first of equal logits is the choice") {
  for (const bool with_baseline : {false, true})
    for (const int64_t vocabulary : {11, 300, 1025}) CHECK(scores_are_right(4, vocabulary, with_baseline));
}

TEST("simt: ids and targets that are not in the vocabulary are refused by the first one") {
  Memory memory;
  auto* const verdict = memory.with(std::vector<uint64_t>{0});
  const Matrix table = memory.normal(DType::bfloat16, 5, 6);
  const Matrix y = memory.matrix(DType::float32, 4, 6);
  ops::embed_cuda(nullptr, table, memory.with(std::vector<int32_t>{4, 0, 5, -1}),
                  reinterpret_cast<std::byte*>(verdict), y);
  CHECK_EQ(*verdict, ~uint64_t{2});
  for (int64_t c = 0; c < 6; ++c) {
    CHECK_EQ(get(y, 0, c), get(table, 4, c));
    CHECK_EQ(get(y, 1, c), get(table, 0, c));
    CHECK_EQ(get(y, 2, c), 0.0);
  }
  *verdict = 0;
  ops::score_tokens_cuda(nullptr, reinterpret_cast<const float*>(y.data), nullptr, 3, 6,
                         memory.with(std::vector<int32_t>{0, 6, -1}), reinterpret_cast<std::byte*>(verdict),
                         reinterpret_cast<ops::TokenScore*>(memory.room(60)));
  CHECK_EQ(*verdict, ~uint64_t{1});
}

bool small_norm() { return norm_is_right(DType::bfloat16, DType::float32, 2, 300); }
bool small_attention() { return attention_is_right(DType::float16, {1, 18, 40, 2, 1, 70, 9, 0.2f, 0}); }
bool small_scores() { return scores_are_right(2, 400, true); }

TEST("simt: a decoder's kernels are right in every order of threads, and need each barrier") {
  for (const auto& body : {small_norm, small_attention, small_scores})
    require_right(__FILE__, __LINE__, every_order(1, 2), body);
  require_each_sync(__FILE__, __LINE__, {small_norm, small_attention, small_scores}, every_order(2));
}

}  // namespace
