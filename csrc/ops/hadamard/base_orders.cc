#include "ops/hadamard/base_orders.h"

#include <cmath>
#include <string_view>

namespace quantaria::ops {
namespace {

bool is_prime(int64_t q) {
  if (q < 2) return false;
  for (int64_t d = 2; d * d <= q; ++d)
    if (q % d == 0) return false;
  return true;
}

/// The root of a square, or 0.
int64_t root_of(int64_t q) {
  const auto root = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(q))));
  return root * root == q ? root : 0;
}

bool has_first_paley(int64_t m) { return m % 4 == 0 && is_prime(m - 1); }
bool has_second_paley(int64_t m) {
  const int64_t q = m / 2 - 1;
  return m % 4 == 0 && q % 4 == 1 && (is_prime(q) || is_prime(root_of(q)));
}

/// First rows of the circulants of order m / 4.
struct Williamson {
  int64_t order;
  std::string_view rows[4];
};
constexpr Williamson kWilliamson[] = {
    {92,
     {"+++-+-+-++-++-++-+-+-++", "+-----+++--++--+++-----", "+---++-+-++++++-+-++---",
      "+--++-++++----++++-++--"}},
    {116,
     {"+-+++-+++--+-++++-+--+++-+++-", "++--++-+-++++----++++-+-++--+", "+--+---+-+--++++++--+-+---+--",
      "+--++----+-++++++++-+----++--"}},
};
const Williamson* williamson_of(int64_t m) {
  for (const Williamson& williamson : kWilliamson)
    if (williamson.order == m) return &williamson;
  return nullptr;
}

/// The quadratic character of the differences of a field of q elements, q prime or p^2 with p prime. Element
/// i of the latter is i / p + (i % p) w, w^2 the least non-residue of p.
class Character {
 public:
  explicit Character(int64_t q) : p_(is_prime(q) ? q : root_of(q)), squared_(p_ != q) {
    symbol_.assign(static_cast<size_t>(p_), -1);
    symbol_[0] = 0;
    for (int64_t i = 1; i < p_; ++i) symbol_[static_cast<size_t>(i * i % p_)] = 1;
    while (symbol_[static_cast<size_t>(non_residue_)] != -1) ++non_residue_;
  }
  int of_difference(int64_t i, int64_t j) const {
    if (!squared_) return symbol(i - j);
    // An element is a square iff its norm is one.
    const int64_t a = i / p_ - j / p_;
    const int64_t b = i % p_ - j % p_;
    return symbol(a * a - non_residue_ * b * b);
  }

 private:
  int symbol(int64_t x) const { return symbol_[static_cast<size_t>((x % p_ + p_) % p_)]; }

  int64_t p_;
  bool squared_;
  std::vector<int> symbol_;
  int64_t non_residue_ = 1;
};

class SquareMatrix {
 public:
  explicit SquareMatrix(int64_t order) : order_(order), entries_(static_cast<size_t>(order * order)) {}
  void set(int64_t i, int64_t j, int value) {
    entries_[static_cast<size_t>(i * order_ + j)] = static_cast<int8_t>(value);
  }
  std::vector<int8_t> take() { return std::move(entries_); }

 private:
  int64_t order_;
  std::vector<int8_t> entries_;
};

std::vector<int8_t> first_paley(int64_t m) {
  const Character chi(m - 1);
  SquareMatrix h(m);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j)
      h.set(i, j, i == j || j == 0 ? 1 : i == 0 ? -1 : chi.of_difference(i - 1, j - 1));
  return h.take();
}

std::vector<int8_t> second_paley(int64_t m) {
  const int64_t half = m / 2;
  const Character chi(half - 1);
  SquareMatrix h(m);
  for (int64_t i = 0; i < half; ++i)
    for (int64_t j = 0; j < half; ++j) {
      const int identity = i == j ? 1 : 0;
      const int c = i == j ? 0 : i == 0 || j == 0 ? 1 : chi.of_difference(i - 1, j - 1);
      h.set(i, j, c + identity);
      h.set(i, half + j, c - identity);
      h.set(half + i, j, c - identity);
      h.set(half + i, half + j, -c - identity);
    }
  return h.take();
}

std::vector<int8_t> by_williamson(const Williamson& williamson) {
  constexpr int kCirculant[4][4] = {{0, 1, 2, 3}, {1, 0, 3, 2}, {2, 3, 0, 1}, {3, 2, 1, 0}};
  constexpr int kSign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};
  const int64_t quarter = williamson.order / 4;
  SquareMatrix h(williamson.order);
  for (int64_t i = 0; i < williamson.order; ++i)
    for (int64_t j = 0; j < williamson.order; ++j) {
      const std::string_view row = williamson.rows[kCirculant[i / quarter][j / quarter]];
      const char entry = row[static_cast<size_t>((j % quarter - i % quarter + quarter) % quarter)];
      h.set(i, j, kSign[i / quarter][j / quarter] * (entry == '+' ? 1 : -1));
    }
  return h.take();
}

std::vector<int8_t> doubled(const std::vector<int8_t>& half, int64_t m) {
  SquareMatrix h(m);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j) {
      const int sign = i >= m / 2 && j >= m / 2 ? -1 : 1;
      h.set(i, j, sign * half[static_cast<size_t>(i % (m / 2) * (m / 2) + j % (m / 2))]);
    }
  return h.take();
}

}  // namespace

int64_t base_order(int64_t n) {
  if (n < 1) return 0;
  int64_t odd = n;
  while (odd % 2 == 0) odd /= 2;
  if (odd == 1) return 1;
  if (n % 4 != 0 || odd > kLargestBaseOrder / 4) return 0;
  if (n % 40 == 0 && odd == 5) return 40;
  const int64_t m = 4 * odd;
  return has_first_paley(m) || has_second_paley(m) || williamson_of(m) != nullptr ? m : 0;
}

std::vector<int8_t> base_matrix(int64_t m) {
  if (m == 1) return {1};
  if (m == 40) return doubled(first_paley(20), 40);
  if (has_first_paley(m)) return first_paley(m);
  if (has_second_paley(m)) return second_paley(m);
  return by_williamson(*williamson_of(m));
}

}  // namespace quantaria::ops
